"""How much of a run is let into the queue at once: plain arithmetic, no broker."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

import msgspec

from fanout.policy.packing import MAX_SHARD_BRANCHES

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["Lanes", "is_draining", "plan_lanes", "shard_window", "workers_wanted"]

_MIN_WINDOW = 2
_MAX_WINDOW = 64
# A shard that drains keeps its lanes half idle for one call; fifty lanes to 500 branches lose 5 %.
_LANES_PER_SHARD = 50
# What part of a shard is left when it drains, and when it does so further.
_DRAINS_AT = (4, 16, 64)


class Lanes(msgspec.Struct, frozen=True, kw_only=True):
    """How a run with ``max_workers`` spreads them over its shards.

    Attributes:
        window: Shards in flight at once.
        per_shard: The most branches in flight of one shard.
        cap: The most branches in flight of the run.
    """

    window: int
    per_shard: int
    cap: int


def shard_window(concurrency: int) -> int:
    """Return how many shards of a run may be in flight, for a fleet of that concurrency.

    Three times what the workers can hold, so that they never wait for a collect and find enough to
    take ahead, and at least two, so that one shard is processed while the next is published.
    """
    wanted = ceil(3 * concurrency / MAX_SHARD_BRANCHES) + 1
    return max(_MIN_WINDOW, min(_MAX_WINDOW, wanted))


def is_draining(*, ended: int, size: int) -> bool:
    """Say whether, with this end, so few branches of a shard are left that others may take over.

    True at a few points only, and once at each: what follows from it costs round trips.
    """
    left = size - ended
    return left > 0 and left in {size // part for part in _DRAINS_AT}


def plan_lanes(*, max_workers: int, shards: int | None) -> Lanes:
    """Return window and lanes of a stage whose run has ``max_workers``.

    Args:
        max_workers: The run's cap.
        shards: How many shards the stage has at least, or None while nothing is known.
    """
    window = min(max_workers, max(_MIN_WINDOW, ceil(max_workers / _LANES_PER_SHARD)), _MAX_WINDOW)
    if shards is not None:
        window = max(1, min(window, shards))
    per_shard = ceil(max_workers / window)
    return Lanes(window=ceil(max_workers / per_shard), per_shard=per_shard, cap=max_workers)


def workers_wanted(*, waiting: int, taken: int, concurrencies: Collection[int], usual: int) -> int:
    """Return how many workers would have all branches that there are in flight at once.

    For scalers outside. The window lets in three times what the workers can hold, so a fleet that
    is too small for a run grows threefold with each step.

    Args:
        waiting: Branches in the queue.
        taken: Branches that workers have taken.
        concurrencies: What each live worker can hold.
        usual: What a worker can hold where none is alive.
    """
    mean = sum(concurrencies) / len(concurrencies) if concurrencies else usual
    return ceil((waiting + taken) / max(mean, 1))
