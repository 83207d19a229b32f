"""The healing policy: which step to do again for a shard or a stage that makes no progress.

Messages get lost when a process dies between two steps, or when somebody deletes a key. The records
in the store and the messages in the broker show which step is missing. Repeating a step is safe,
because only the first outcome of a branch counts. But a branch must not be called twice without
need: only branches with neither an outcome nor a message are published again.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fanout.core.state import ShardState, StageProgress

__all__ = [
    "BrokerMessages",
    "Heal",
    "Remedy",
    "heal_shard",
    "heal_stage",
    "heal_unsealed",
    "unpublished",
]


class Heal(Enum):
    """The step that a shard or a stage needs."""

    NOTHING = "nothing"  # it waits for its turn, or is being processed
    EXPAND = "expand"  # the shard was opened, but never published
    BRANCHES = "branches"  # messages of branches are lost
    COLLECT = "collect"  # all branches have ended, but the callback never completed
    OPEN = "open"  # the window has room for shards that were never opened
    ADOPT = "adopt"  # unfinished shards are missing from the list of open ones
    GO_ON = "go on"  # what adds shards to the stage one by one has stopped
    AGGREGATE = "aggregate"  # all shards are collected, but the root callback never ran
    LOSE = "lose"  # branches were published again too often: record them as lost
    FAIL = "fail"  # a callback was published again too often, or records are missing: fail the run


class BrokerMessages(msgspec.Struct, frozen=True, kw_only=True):
    """The messages of a shard, or of a stage, in the broker: waiting, or being processed.

    Attributes:
        branches: The positions of branches with a message.
        expand: Whether the shard's expand has a message.
        collect: Whether the shard's collect has a message.
        closing: Whether a task that will end the stage has a message: a collect, its seal, its
            aggregate.
    """

    branches: frozenset[int] = frozenset()
    expand: bool = False
    collect: bool = False
    closing: bool = False


class Remedy(msgspec.Struct, frozen=True, kw_only=True):
    """A step to do again, for branches at these positions; for ``adopt``, for these shards."""

    heal: Heal
    positions: tuple[int, ...] = ()


_NOTHING = Remedy(heal=Heal.NOTHING)


def heal_shard(shard: ShardState, messages: BrokerMessages, *, max_heals: int) -> Remedy:
    """Return the remedy for an open shard that makes no progress.

    It is ``nothing`` only if a message of the shard is in the broker, or a live worker holds one of
    its branches. Otherwise nothing is in flight, and only a remedy can complete the shard.

    Args:
        shard: The shard's records in the store.
        messages: The shard's messages in the broker.
        max_heals: How often its branches are published again before they are lost, and after that
            its callback before the run fails.
    """
    if messages.expand or messages.collect:
        return _NOTHING
    if shard.finished or len(shard.ended) >= shard.count:
        # A retry may have opened a finished shard again: its expand handles that.
        step = Heal.EXPAND if shard.finished else Heal.COLLECT
        return Remedy(heal=step if shard.heals < 2 * max_heals else Heal.FAIL)
    missing = unpublished(shard, messages)
    if missing and shard.heals >= max_heals:
        return Remedy(heal=Heal.LOSE, positions=missing)
    if not shard.published:
        return Remedy(heal=Heal.EXPAND)
    return Remedy(heal=Heal.BRANCHES, positions=missing) if missing else _NOTHING


def unpublished(shard: ShardState, messages: BrokerMessages) -> tuple[int, ...]:
    """Return the positions of the branches that have neither an outcome nor a message."""
    return tuple(sorted(set(range(shard.count)) - shard.ended - messages.branches - shard.held))


def heal_unsealed(stage: StageProgress, *, goes_on: bool, max_heals: int) -> Remedy:
    """Return the remedy for a stage that makes no progress, and should have all its shards.

    Args:
        stage: The stage's records in the store.
        goes_on: Whether its shards follow each other: each is written when the one before has ended.
        max_heals: How often that is done again before the run fails.
    """
    if goes_on and stage.opened < stage.written:
        return Remedy(heal=Heal.OPEN)
    return Remedy(heal=Heal.GO_ON if goes_on and stage.heals < max_heals else Heal.FAIL)


def heal_stage(
    stage: StageProgress, messages: BrokerMessages, *, incomplete: Sequence[int], max_heals: int
) -> Remedy:
    """Return the remedy for a stage that makes no progress.

    ``incomplete`` are its shards that have fewer outcomes than branches. Its callback is published
    again ``max_heals`` times before the run fails.
    """
    if stage.open:
        return _NOTHING
    if stage.opened < stage.written:
        return Remedy(heal=Heal.OPEN)
    if not stage.sealed or messages.closing:
        return _NOTHING
    if incomplete:
        return Remedy(heal=Heal.ADOPT, positions=tuple(incomplete))
    return Remedy(heal=Heal.AGGREGATE if stage.heals < max_heals else Heal.FAIL)
