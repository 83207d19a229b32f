"""What is wrong with a shard or a stage that makes no progress: a pure decision.

Messages get lost where a process dies between two steps, or where somebody deletes a key. What the
store holds and what waits in the broker tell which step is missing. To do a step again is harmless,
because the first outcome of a branch stands; but a branch must not be called twice for nothing, so
only what is in neither place is published again.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fanout.core.state import ShardState, StageProgress

__all__ = ["Heal", "Remedy", "Seen", "heal_shard", "heal_stage", "unpublished"]


class Heal(Enum):
    """What a shard or a stage needs."""

    NOTHING = "nothing"  # it is waiting its turn, or being processed
    EXPAND = "expand"  # the shard was let in, but never published
    BRANCHES = "branches"  # messages of branches are lost
    COLLECT = "collect"  # all branches have ended, but the callback never ran to its end
    OPEN = "open"  # there is room for shards that were never let in
    ADOPT = "adopt"  # shards that have not ended are no longer known as being processed
    AGGREGATE = "aggregate"  # all shards are collected, but the root callback never ran
    LOSE = "lose"  # branches were published again too often: they are recorded as lost
    FAIL = "fail"  # a callback was published again too often, or records are gone: it has failed


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """Which messages of a shard, or of a stage, are in the broker: waiting, or being processed.

    Attributes:
        branches: The positions of branches.
        expand: Whether the shard's expand is there.
        collect: Whether the shard's collect is there.
        closing: Whether anything is there that will end the stage: a collect, its seal, its
            aggregate.
    """

    branches: frozenset[int] = frozenset()
    expand: bool = False
    collect: bool = False
    closing: bool = False


class Remedy(msgspec.Struct, frozen=True, kw_only=True):
    """What to do.

    Attributes:
        heal: The step to do again.
        positions: The branches that it is about; for ``adopt``, the shards.
    """

    heal: Heal
    positions: tuple[int, ...] = ()


_NOTHING = Remedy(heal=Heal.NOTHING)


def heal_shard(shard: ShardState, seen: Seen, *, lanes: int, max_heals: int) -> Remedy:
    """Return what an open shard that makes no progress needs.

    It is something unless a message of it waits, or a living worker holds a branch of it: where
    nothing is in flight, nothing but a remedy can bring the shard to its end.

    Args:
        shard: What the store holds of it.
        seen: What the broker holds of it.
        lanes: How many of its branches may be in flight; 0 is all of them.
        max_heals: How often its branches are published again before they are lost, and then its
            callback before the run has failed.
    """
    if seen.expand or seen.collect:
        return _NOTHING
    if shard.finished or len(shard.ended) >= shard.count:
        # One that is finished may have been let in again by a retry: its expand sees to that.
        again = Heal.EXPAND if shard.finished else Heal.COLLECT
        return Remedy(heal=again if shard.heals < 2 * max_heals else Heal.FAIL)
    missing = unpublished(shard, seen, lanes=lanes)
    # Those that were never published cannot have been lost.
    is_lost = bool(missing) and missing[-1] < _published(shard)
    if is_lost and shard.heals >= max_heals:
        return Remedy(heal=Heal.LOSE, positions=missing)
    if shard.published is None:
        return Remedy(heal=Heal.EXPAND)
    return Remedy(heal=Heal.BRANCHES, positions=missing) if missing else _NOTHING


def unpublished(shard: ShardState, seen: Seen, *, lanes: int) -> tuple[int, ...]:
    """Return the branches of a shard that must be published for it to go on.

    What was published and has neither outcome nor message is lost. Of branches that follow one
    another, those to come need no message while one before them is in flight; where none is, as
    many as may be in flight must begin anew.

    Args:
        shard: What the store holds of it.
        seen: What the broker holds of it.
        lanes: How many of its branches may be in flight; 0 is all of them.
    """
    open_ = set(range(shard.count)) - shard.ended
    waiting = (seen.branches | shard.held) & open_
    rest = sorted(open_ - waiting)
    published = _published(shard)
    lost = tuple(position for position in rest if position < published)
    if lost or waiting:
        return lost
    return tuple(rest[: lanes or None])


def _published(shard: ShardState) -> int:
    # Where none ever were, all are to be, and at once.
    return shard.count if shard.published is None else shard.published


def heal_stage(
    stage: StageProgress, seen: Seen, *, incomplete: Sequence[int], max_heals: int
) -> Remedy:
    """Return what a stage that makes no progress needs.

    Args:
        stage: What the store holds of it.
        seen: What the broker holds of it.
        incomplete: Its shards that have fewer outcomes than branches.
        max_heals: How often its callback is published again before the run has failed.
    """
    if stage.open:
        return _NOTHING
    if stage.opened < stage.written:
        return Remedy(heal=Heal.OPEN)
    if not stage.sealed or seen.closing:
        return _NOTHING
    if incomplete:
        return Remedy(heal=Heal.ADOPT, positions=tuple(incomplete))
    return Remedy(heal=Heal.AGGREGATE if stage.heals < max_heals else Heal.FAIL)
