"""The policy of the batch lane: when to make a batch, when to look at it, and what would be late."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from fanout.core.gathered import LaneQueue

__all__ = [
    "CALL_S",
    "BatchStep",
    "is_due",
    "is_too_short",
    "late_steps",
    "most_calls",
    "poll_wait_s",
    "retry_wait_s",
    "scarce_calls",
]

# How far a call is: to be gathered; in no batch that the provider may have; in one; in one that has ended.
BatchStep = Literal["new", "gathered", "sent", "answered"]
# Seconds of a call without a measurement.
CALL_S = 20.0

# A batch waits for further calls at most this many times as long as a pause between two of them.
_LONGEST_WAITS = 12
# A batch that ends soon shall be seen soon.
_FIRST_POLL_S = 2.0
_GROWTH = 1.5
_LONGEST_RETRY_S = 300.0
_HALVES = 2
# Calls take longer when all of a run are made at once, and some are made again.
_SAFETY = 2.0
# The share of the time to the deadline that is left for branches to end, and its bounds in seconds.
_RESERVE, _LEAST_RESERVE_S, _MOST_RESERVE_S = 0.1, 2.0, 120.0
# A batch is not begun with less time than this share of that to the deadline, within these seconds: the
# least are for it to be made, asked about some times, and read.
_BATCH, _LEAST_BATCH_S, _MOST_BATCH_S = 0.2, 20.0, 300.0


def is_due(queue: LaneQueue, *, most_calls: int, most_bytes: int, wait_s: float) -> bool:
    """Say whether the calls of a lane should become a batch now.

    Args:
        queue: The calls that are in no batch yet.
        most_calls: The most calls of a batch.
        most_bytes: The most bytes of its lines.
        wait_s: Seconds without a further call after which a batch is made of what there is.
    """
    if not queue.calls or queue.held_s > 0:
        return False
    if queue.calls >= most_calls or queue.bytes >= most_bytes:
        return True
    return queue.newest_s >= wait_s or queue.oldest_s >= _LONGEST_WAITS * wait_s


def most_calls(queue: LaneQueue, *, provider: int, setting: int) -> int:
    """Return the most calls of the next batch of a lane: by its provider, the setting, and its room."""
    return min(provider, setting, queue.most_calls or provider)


def poll_wait_s(polls: int, *, longest_s: float) -> float:
    """Return the seconds until a batch is asked about again, after so many times."""
    # Beyond some 40 times the power only grows.
    return min(longest_s, _FIRST_POLL_S * _GROWTH ** min(polls, 40))


def retry_wait_s(tries: int, *, retry_after_s: float | None = None) -> float:
    """Return the seconds until a step at the provider that has failed is tried again."""
    wait_s: float = min(_LONGEST_RETRY_S, 2.0 ** min(tries, 10))
    return max(wait_s, min(retry_after_s or 0.0, _LONGEST_RETRY_S))


def scarce_calls(calls: int) -> int:
    """Return the most calls of the next batch, after the provider had no room for so many."""
    return max(1, calls // _HALVES)


def late_steps(
    *,
    left_s: float,
    span_s: float,
    branches: int,
    concurrency: int,
    call_s: float,
    wait_s: float,
) -> frozenset[BatchStep]:
    """Return which calls for batches must be made now, as their answers would come too late.

    A batch that the provider has goes on until the rest of the time is needed to make its calls anew. What
    the provider does not have yet also needs time for a batch; less of it once it is gathered, so that no
    batch is late as soon as it is made. What is answered already only has to be read.

    Args:
        left_s: Seconds to the deadline.
        span_s: Seconds from the submission of the run to the deadline.
        branches: Branches that have not ended.
        concurrency: Calls that the fleet makes at a time.
        call_s: Seconds of a call.
        wait_s: Seconds for which gathered calls wait for further ones.
    """
    calls_s = ceil(branches / max(1, concurrency)) * call_s
    reserve_s = max(_LEAST_RESERVE_S, min(_MOST_RESERVE_S, _RESERVE * span_s))
    batch_s = max(_LEAST_BATCH_S, min(_MOST_BATCH_S, _BATCH * span_s))
    sent_s = reserve_s + _SAFETY * calls_s
    needed_s: dict[BatchStep, float] = {
        "new": sent_s + batch_s + wait_s,
        "gathered": sent_s + batch_s / _HALVES,
        "sent": sent_s,
        "answered": reserve_s / _HALVES + calls_s,
    }
    return frozenset(step for step, seconds in needed_s.items() if left_s <= seconds)


def is_too_short(deadline_s: float, *, call_s: float, wait_s: float) -> bool:
    """Say whether no call of a run with this deadline can wait for a batch, however few they are."""
    late = late_steps(
        left_s=deadline_s,
        span_s=deadline_s,
        branches=1,
        concurrency=1,
        call_s=call_s,
        wait_s=wait_s,
    )
    return "new" in late
