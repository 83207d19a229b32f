from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanout.core.rate_limits import MAX_BLOCK_S
from fanout.core.records import ErrorKind
from fanout.core.spec_fields import RetrySpec
from fanout.policy.retries import (
    RETRYABLE,
    STOPS_RUN,
    larger_token_limit,
    may_ask_anew,
    retry_wait_s,
)

POLICY = RetrySpec(max_attempts=5, max_elapsed_s=100, base_wait_s=1, max_wait_s=10)


def wait(kind=ErrorKind.SERVER_ERROR, attempt=1, elapsed_s=0.0, jitter=1.0, **options):
    options = {"spent": attempt, "failures": attempt, **options}
    return retry_wait_s(kind=kind, elapsed_s=elapsed_s, policy=POLICY, jitter=jitter, **options)


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
    wait_s = retry_wait_s(
        kind=ErrorKind.TIMEOUT, spent=98, failures=98, elapsed_s=0, policy=policy, jitter=1.0
    )
    assert wait_s == 10


@pytest.mark.parametrize("kind", sorted(ErrorKind))
def test_a_policy_of_one_call_allows_no_other(kind):
    policy = RetrySpec(max_attempts=1)
    assert (
        retry_wait_s(kind=kind, spent=0.0, failures=1, elapsed_s=0, policy=policy, jitter=0.0)
        is None
    )


def test_what_others_share_spends_no_attempts_and_is_looked_at_soon():
    assert wait(spent=0.0, failures=200) == 10
    assert wait(spent=4.9, failures=200) == 10
    assert wait(spent=5.0, failures=200) is None
    policy = RetrySpec(max_wait_s=600)
    wait_s = retry_wait_s(
        kind=ErrorKind.CONNECTION, spent=0.0, failures=40, elapsed_s=0, policy=policy, jitter=1.0
    )
    assert wait_s == 30


def test_a_provider_that_asks_for_very_much_is_asked_again_sooner():
    policy = RetrySpec()
    for asked_s in (600.0, 86_400.0, float("inf")):
        wait_s = retry_wait_s(
            kind=ErrorKind.RATE_LIMITED, spent=0.0, failures=1, elapsed_s=0, policy=policy,
            jitter=1.0, retry_after_s=asked_s,
        )  # fmt: skip
        assert wait_s == MAX_BLOCK_S


def test_while_all_calls_are_held_back_a_branch_waits_there():
    assert wait(attempt=4, is_held=True, retry_after_s=60) == 1


@pytest.mark.parametrize(
    ("options", "room"),
    [
        ({"max_tokens": 50}, 100),
        ({"max_tokens": 50, "prompt_tokens": 900}, 100),
        # Without a limit, the model's own has cut the answer.
        ({"max_tokens": None}, None),
        ({"max_tokens": None, "window_tokens": 9_000}, None),
        ({"max_tokens": 50, "window_tokens": 100}, 100),
        ({"max_tokens": 50, "window_tokens": 99}, None),
        ({"max_tokens": 50, "window_tokens": 1000, "prompt_tokens": 900}, 100),
        ({"max_tokens": 50, "window_tokens": 1000, "prompt_tokens": 901}, None),
        ({"max_tokens": 50, "spent": 5.0}, None),
        ({"max_tokens": 50, "elapsed_s": 101}, None),
        ({"max_tokens": 50, "kind": ErrorKind.INVALID_OUTPUT}, None),
    ],
)
def test_what_room_an_answer_gets_that_was_cut(options, room):
    options = {"kind": ErrorKind.TRUNCATED, "spent": 1.0, "elapsed_s": 0.0, **options}
    assert larger_token_limit(options.pop("kind"), policy=POLICY, **options) == room


@pytest.mark.parametrize(
    ("options", "is_asked"),
    [
        ({}, True),
        ({"spent": 4.0, "elapsed_s": 100}, True),
        ({"spent": 5.0}, False),
        ({"elapsed_s": 101}, False),
        ({"kind": ErrorKind.INVALID_OUTPUT}, False),
    ],
)
def test_when_a_cut_answer_is_asked_for_anew(options, is_asked):
    options = {"kind": ErrorKind.TRUNCATED, "spent": 1.0, "elapsed_s": 0.0, **options}
    assert may_ask_anew(options.pop("kind"), policy=POLICY, **options) is is_asked
