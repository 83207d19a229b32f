"""Admission: how many shards and branches of a run are under way at once."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from fanout.core.queue_names import TURNS_OF_A_RUN
from fanout.policy.packing import MAX_SHARD_BRANCHES

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = [
    "in_play_limit",
    "is_draining",
    "is_gathered_up",
    "shard_window",
    "turns_of",
    "workers_wanted",
]

_MIN_WINDOW = 2
_MAX_WINDOW = 64
# Further shards are opened when 1/4, 1/16 and 1/64 of a shard's branches are left.
_DRAINS_AT = (4, 16, 64)
# Of a run with a cap, so many branches for each permit may be settled or taken meanwhile, at most so
# many in all: with fewer, calls of 10 ms under 64 permits take 5 to 10 % longer.
_SETTLING_EACH = 4
_SETTLING = 512


def shard_window(concurrency: int) -> int:
    """Return how many shards of a run may be in flight in a fleet of this concurrency.

    The window holds three times the concurrency, so that workers never wait for a collect and find
    enough to prefetch. It has at least two shards, to publish one while another is processed.
    """
    shards = ceil(3 * concurrency / MAX_SHARD_BRANCHES) + 1
    return max(_MIN_WINDOW, min(_MAX_WINDOW, shards))


def is_draining(*, ended: int, size: int) -> bool:
    """Say whether a shard with ``ended`` ended branches should let further shards be opened.

    It is true at a few points only, once at each, because opening shards costs round trips.
    """
    left = size - ended
    return left > 0 and left in {size // part for part in _DRAINS_AT}


def is_gathered_up(*, settled: int, size: int) -> bool:
    """Say whether a shard of which so many branches have ended or wait for batches should do the same."""
    return settled == size or is_draining(ended=settled, size=size)


def in_play_limit(max_workers: int) -> int:
    """Return how many branches of a run with ``max_workers`` may be in the queue and at workers.

    They are those in flight, as many that follow them at once, and those that are being settled.
    """
    return 2 * max_workers + min(_SETTLING_EACH * max_workers, _SETTLING)


def turns_of(priority: float) -> int:
    """Return how many messages of a run of this priority may be in the queue of branches."""
    return max(1, round(TURNS_OF_A_RUN * priority))


def workers_wanted(
    *,
    waiting: int,
    taken: int,
    concurrencies: Collection[int],
    usual: int,
    waiting_for_permits: int = 0,
) -> int:
    """Return how many workers could hold all admitted branches in flight at once.

    It is for autoscalers. The window admits three times the concurrency of the workers, so a fleet
    that is too small for a run grows threefold with each step.

    Args:
        waiting: Branches in the queue.
        taken: Branches that workers have taken.
        concurrencies: The concurrency of each live worker.
        usual: The concurrency to assume if no worker is alive.
        waiting_for_permits: How many of both wait for a permit: no place could begin them.
    """
    mean = sum(concurrencies) / len(concurrencies) if concurrencies else usual
    return ceil(max(0, waiting + taken - waiting_for_permits) / max(mean, 1))
