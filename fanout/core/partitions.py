"""How far a partition of groups is packed into the prompts of a stage."""

from __future__ import annotations

from enum import Enum

import msgspec

__all__ = ["PartWrite", "PartitionRecord", "has_bit", "with_bits"]


class PartitionRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a partition has written of a stage, written in one step with each of its shards.

    Attributes:
        shards: The shards of the stage that it has written, in order.
        packed: A bit for each of its groups: whether all nodes of the group are written. For the first
            level of a partition of several groups.
        shard: Of the shards that it reads, the number of the first one that has not been packed whole. For
            the other levels, and for a group that is a partition by itself.
        position: The position of the first branch there that is not packed.
        group: The group of which only some nodes are written, by its number in the partition.
        nodes: How many nodes of that group are written, or of the group that comes next.
        has_more: Whether a group of it has several nodes in the stage, so that a next level follows.
        is_complete: Whether it has no more nodes for the stage.
    """

    shards: tuple[int, ...] = ()
    packed: bytes = b""
    shard: int = 0
    position: int = 0
    group: int | None = None
    nodes: int = 0
    has_more: bool = False
    is_complete: bool = False


class PartWrite(Enum):
    """What became of a write of a partition."""

    CLOSED = "closed"  # the stage takes no more shards, or its run has ended or is to end
    OVERTAKEN = "overtaken"  # another process has written the partition meanwhile
    MOVED = "moved"  # another partition has written a shard meanwhile: the number is taken
    DONE = "done"


def has_bit(bits: bytes, at: int) -> bool:
    """Return a bit of a row of bits; those behind its end are not set."""
    byte, bit = divmod(at, 8)
    return byte < len(bits) and bool(bits[byte] >> bit & 1)


def with_bits(bits: bytes, some: list[int]) -> bytes:
    """Return a row of bits in which some more are set."""
    made = bytearray(bits)
    for at in some:
        byte, bit = divmod(at, 8)
        if byte >= len(made):
            made.extend(bytes(byte + 1 - len(made)))
        made[byte] |= 1 << bit
    return bytes(made)
