"""The policy of the batch lane: when to make a batch, when to look at it, and what would be late."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fanout.core.gathered import LaneQueue

__all__ = ["is_due", "is_late", "most_calls", "poll_wait_s", "retry_wait_s", "scarce_calls"]

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
# A batch is not begun with less time than this share of that to the deadline, or these seconds.
_BATCH, _MOST_BATCH_S = 0.2, 300.0


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


def is_late(
    *,
    left_s: float,
    span_s: float,
    branches: int,
    concurrency: int,
    call_s: float,
    is_submitted: bool,
) -> bool:
    """Say whether branches must be called now, as they would be late with a batch.

    Calls in a batch that the provider has go on until the rest of the time is needed to make them anew. A
    new batch needs some time beyond that.

    Args:
        left_s: Seconds to the deadline.
        span_s: Seconds from the submission of the run to the deadline.
        branches: Branches that have not ended.
        concurrency: Calls that the fleet makes at a time.
        call_s: Seconds of a call.
        is_submitted: Whether the provider has the batch.
    """
    rounds = ceil(branches / max(1, concurrency))
    reserve_s = max(_LEAST_RESERVE_S, min(_MOST_RESERVE_S, _RESERVE * span_s))
    needed_s = reserve_s + _SAFETY * rounds * call_s
    if not is_submitted:
        needed_s += min(_MOST_BATCH_S, _BATCH * span_s)
    return left_s <= needed_s
