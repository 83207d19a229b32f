"""The policy of the batch lane, as tables."""

from __future__ import annotations

import pytest

from fanout.core.gathered import LaneQueue, LaneRecord
from fanout.policy.admission import is_gathered_up
from fanout.policy.lanes import (
    is_due,
    is_too_short,
    late_steps,
    most_calls,
    poll_wait_s,
    retry_wait_s,
    scarce_calls,
)


def queue(calls=10, size=1_000, oldest_s=0.5, newest_s=0.1, **fields):
    record = LaneRecord(model="openai/m", account="a")
    given = {"calls": calls, "bytes": size, "oldest_s": oldest_s, "newest_s": newest_s, **fields}
    return LaneQueue(lane_id="L", record=record, **given)


@pytest.mark.parametrize(
    ("given", "due"),
    [
        (queue(), False),  # more may come
        (queue(calls=100), True),  # a batch is full
        (queue(size=50_000), True),
        (queue(newest_s=5.0), True),  # no more has come
        (queue(oldest_s=60.0), True),  # a few come all the time
        (queue(calls=0, newest_s=9.0), False),
        (queue(calls=100, held_s=1.0), False),  # the provider has no room
    ],
)
def test_a_batch_is_made_when_it_is_full_or_nothing_more_comes(given, due):
    assert is_due(given, most_calls=100, most_bytes=50_000, wait_s=5.0) is due


def test_the_next_batch_is_as_large_as_all_limits_allow():
    assert most_calls(queue(), provider=100, setting=50) == 50
    assert most_calls(queue(), provider=100, setting=500) == 100
    assert most_calls(queue(most_calls=20), provider=100, setting=50) == 20
    assert [scarce_calls(calls) for calls in (100, 3, 1)] == [50, 1, 1]


def test_questions_about_a_batch_become_rare_up_to_a_limit():
    waits = [poll_wait_s(polls, longest_s=60.0) for polls in range(12)]
    assert waits[0] == 2.0
    assert waits == sorted(waits)
    assert waits[-1] == poll_wait_s(10**6, longest_s=60.0) == 60.0
    assert poll_wait_s(0, longest_s=0.5) == 0.5


def test_a_step_is_tried_again_ever_later_and_as_the_provider_asks():
    assert [retry_wait_s(tries) for tries in (0, 3, 99)] == [1.0, 8.0, 300.0]
    assert retry_wait_s(0, retry_after_s=20.0) == 20.0
    assert retry_wait_s(0, retry_after_s=10**6) == 300.0


# Of a run with a deadline after 1,000 s: 100 s are kept, and two calls' time for each round of calls.
@pytest.mark.parametrize(
    ("left_s", "branches", "step", "late"),
    [
        (900, 10, "sent", False),
        (900, 10, "new", False),
        (141, 10, "sent", False),
        (140, 10, "sent", True),
        (346, 10, "new", False),  # a new batch needs a fifth of the time, and 5 s to be gathered
        (345, 10, "new", True),
        (241, 10, "gathered", False),  # and half of that once it is
        (240, 10, "gathered", True),
        (71, 10, "answered", False),  # what has been answered is only read
        (70, 10, "answered", True),
        (500, 1_000, "sent", True),  # ten rounds of 20 s
        (501, 1_000, "sent", False),
        (-5, 1, "answered", True),
    ],
)
def test_what_is_late_is_called_at_once(left_s, branches, step, late):
    given = {"left_s": left_s, "span_s": 1_000, "branches": branches, "concurrency": 100}
    assert late is (step in late_steps(call_s=20.0, wait_s=5.0, **given))


@pytest.mark.parametrize("span_s", range(1, 600, 7))
@pytest.mark.parametrize("branches", [1, 30, 1_000])
def test_no_batch_is_late_as_soon_as_it_is_made(span_s, branches):
    """What is gathered at the last moment can be sent, and what is sent then is asked about in time."""
    given = {
        "span_s": span_s,
        "branches": branches,
        "concurrency": 30,
        "call_s": 20.0,
        "wait_s": 5.0,
    }
    last = [left for left in range(span_s, 0, -1) if "new" not in late_steps(left_s=left, **given)]
    if last:
        assert "gathered" not in late_steps(left_s=last[-1] - 9, **given)
    last = [
        left for left in range(span_s, 0, -1) if "gathered" not in late_steps(left_s=left, **given)
    ]
    if last:
        assert "sent" not in late_steps(left_s=last[-1] - 9, **given)


def test_a_short_deadline_leaves_no_time_for_a_batch():
    short = [s for s in (30, 60, 120, 86_400) if is_too_short(s, call_s=20.0, wait_s=5.0)]
    assert short == [30, 60]


def test_a_fleet_without_workers_is_no_reason_to_divide_by_zero():
    given = {"left_s": 500, "span_s": 1_000, "branches": 5, "call_s": 20.0, "wait_s": 5.0}
    assert "sent" not in late_steps(concurrency=0, **given)


def test_a_shard_lets_others_be_opened_as_its_branches_are_gathered():
    assert [at for at in range(1, 101) if is_gathered_up(settled=at, size=100)] == [75, 94, 99, 100]
