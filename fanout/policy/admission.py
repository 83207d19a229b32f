"""Admission: how many shards of a run are in the window, and how many permits each has."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

import msgspec

from fanout.policy.packing import MAX_SHARD_BRANCHES

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["Permits", "is_draining", "plan_permits", "shard_window", "workers_wanted"]

_MIN_WINDOW = 2
_MAX_WINDOW = 64
# While a shard drains, half of its permits are idle for about one call: with 50 permits for 500
# branches, that loses 5 %.
_PERMITS_PER_SHARD = 50
# A shard gives up permits when 1/4, 1/16 and 1/64 of its branches are left.
_DRAINS_AT = (4, 16, 64)


class Permits(msgspec.Struct, frozen=True, kw_only=True):
    """How a run with ``max_workers`` spreads its permits over its shards.

    Attributes:
        window: Shards in flight at once.
        per_shard: The most branches in flight of one shard.
        cap: The most branches in flight of the run.
    """

    window: int
    per_shard: int
    cap: int


def shard_window(concurrency: int) -> int:
    """Return how many shards of a run may be in flight in a fleet of this concurrency.

    The window holds three times the concurrency, so that workers never wait for a collect and find
    enough to prefetch. It has at least two shards, to publish one while another is processed.
    """
    shards = ceil(3 * concurrency / MAX_SHARD_BRANCHES) + 1
    return max(_MIN_WINDOW, min(_MAX_WINDOW, shards))


def is_draining(*, ended: int, size: int) -> bool:
    """Say whether a shard with ``ended`` ended branches should pass permits to other shards.

    It is true at a few points only, once at each, because passing permits costs round trips.
    """
    left = size - ended
    return left > 0 and left in {size // part for part in _DRAINS_AT}


def plan_permits(*, max_workers: int, shards: int | None) -> Permits:
    """Return the window and the permits of a stage of a run with ``max_workers``.

    Args:
        max_workers: The run's cap.
        shards: The least number of shards of the stage, or None while it is unknown.
    """
    window = min(max_workers, max(_MIN_WINDOW, ceil(max_workers / _PERMITS_PER_SHARD)), _MAX_WINDOW)
    if shards is not None:
        window = max(1, min(window, shards))
    per_shard = ceil(max_workers / window)
    return Permits(window=ceil(max_workers / per_shard), per_shard=per_shard, cap=max_workers)


def workers_wanted(*, waiting: int, taken: int, concurrencies: Collection[int], usual: int) -> int:
    """Return how many workers could hold all admitted branches in flight at once.

    It is for autoscalers. The window admits three times the concurrency of the workers, so a fleet
    that is too small for a run grows threefold with each step.

    Args:
        waiting: Branches in the queue.
        taken: Branches that workers have taken.
        concurrencies: The concurrency of each live worker.
        usual: The concurrency to assume if no worker is alive.
    """
    mean = sum(concurrencies) / len(concurrencies) if concurrencies else usual
    return ceil((waiting + taken) / max(mean, 1))
