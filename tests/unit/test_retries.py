from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanout.retries import RETRYABLE, STOPS_RUN, decide
from fanout.runs import ErrorKind
from fanout.spec import RetrySpec

POLICY = RetrySpec(max_attempts=5, max_elapsed_s=100, base_wait_s=1, max_wait_s=10)


def wait(kind=ErrorKind.SERVER_ERROR, attempt=1, elapsed_s=0.0, jitter=1.0, **options):
    decision = decide(
        kind=kind, attempt=attempt, elapsed_s=elapsed_s, policy=POLICY, jitter=jitter, **options
    )
    return decision and decision.wait_s


@pytest.mark.parametrize("kind", ErrorKind)
def test_which_kinds_are_tried_again(kind):
    again = {"rate_limited", "timeout", "connection", "server_error", "invalid_output"}
    assert (wait(kind) is not None) == (kind.value in again)


def test_what_stops_a_run_is_never_tried_again():
    assert {ErrorKind.AUTH, ErrorKind.BUDGET} == STOPS_RUN
    assert not STOPS_RUN & RETRYABLE


@pytest.mark.parametrize(("attempt", "wait_s"), [(1, 1), (2, 2), (3, 4), (4, 8), (5, None)])
def test_waits_double_and_attempts_are_bounded(attempt, wait_s):
    assert wait(attempt=attempt) == wait_s


@given(attempt=st.integers(1, 4), jitter=st.floats(0, 1))
def test_jitter_spreads_over_the_upper_half(attempt, jitter):
    full = wait(attempt=attempt, jitter=1.0)
    assert full / 2 <= wait(attempt=attempt, jitter=jitter) <= full


@pytest.mark.parametrize(
    ("elapsed_s", "retry_after_s", "wait_s"),
    [(0, 0.2, 1), (0, 30, 30), (90, 30, None), (99.5, None, None), (98, None, 1)],
)
def test_retry_after_is_honoured_within_the_time_there_is(elapsed_s, retry_after_s, wait_s):
    assert wait(elapsed_s=elapsed_s, retry_after_s=retry_after_s) == wait_s


def test_no_wait_is_longer_than_the_longest():
    policy = RetrySpec(max_attempts=99, max_elapsed_s=10**9, base_wait_s=1, max_wait_s=10)
    decision = decide(kind=ErrorKind.TIMEOUT, attempt=98, elapsed_s=0, policy=policy, jitter=1.0)
    assert decision.wait_s == 10
