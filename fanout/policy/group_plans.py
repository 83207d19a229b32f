"""The plan by which very many groups of answers are reduced: partitions, which workers process apart.

A partition is some groups that follow each other in the order of first appearance. With sorted input, its
answers are in a few shards that follow each other; with unsorted input they are in all, and each partition
reads all shards. So there must not be many partitions, and a partition must not be processed for each
group that is complete: it is due when the shards that it would read mostly have answers for it.

The plan is made from the hashes of groups (fanout.core.group_hashes), in flat arrays: 4 bytes for each
branch, and some 100 for each group. The table by which groups are found has one slice of them after another.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from fanout.core.partitions import has_bit

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

__all__ = [
    "GroupPlan",
    "PartitionGroups",
    "PartitionPlan",
    "closed_groups",
    "due_partitions",
    "planned",
]

# The answers of the largest partition are some 50 MB if each has 1 KB; what its file has no room for is read
# again. A smaller run has as many partitions as workers may share.
_MOST_BRANCHES = 50_000
_LEAST_BRANCHES = 5_000
_PARTITIONS = 16
# The least share of useful answers among those that are read.
_WORTH = 0.5
# How often a group that is a partition by itself is due while its branches go on.
_TIMES_ALONE = 16
# The groups of so many branches are found at once: a slice of the groups is planned after the other. An entry
# of the table takes some 120 bytes, and each slice reads the hashes of all branches.
_BRANCHES_AT_ONCE = 500_000
# Numbers of shards, branches and groups: 4 bytes each.
_NUMBERS = "I"


class PartitionGroups(NamedTuple):
    """The groups of a partition, in the order of their first appearance in the input.

    Attributes:
        hashes: Their hashes.
        firsts: The first shard with a branch of each.
        lasts: The last one.
        counts: The number of branches of each.
    """

    hashes: array[int]
    firsts: array[int]
    lasts: array[int]
    counts: array[int]


class PartitionPlan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of a partition before any branch has ended.

    Attributes:
        groups: The number of its groups.
        branches: The number of their branches.
        first: The first shard with one of them.
        last: The last one.
        due: The shards at whose end it is worth being processed; the last one is always among them.
        is_alone: Whether it is one large group, whose nodes are made before it is complete.
    """

    groups: int
    branches: int
    first: int
    last: int
    due: tuple[int, ...]
    is_alone: bool = False


class GroupPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The partitions of a stage, in the order of the first appearance of their groups."""

    partitions: tuple[PartitionPlan, ...] = ()


def due_partitions(plan: GroupPlan, *, before: int, front: int) -> list[int]:
    """Return the partitions to process when the first shard that has not ended moves on.

    Args:
        plan: The plan.
        before: The first such shard until now.
        front: The first such shard from now on.
    """
    return [
        number
        for number, partition in enumerate(plan.partitions)
        if any(before <= shard < front for shard in partition.due)
    ]


def closed_groups(
    groups: PartitionGroups, packed: bytes, *, opened: int, still_open: Collection[int]
) -> list[int]:
    """Return the groups, by their numbers in their partition, of which all branches have ended.

    Args:
        groups: The groups of the partition.
        packed: A bit for each group: those that are set are left out.
        opened: The shards from this number on have not begun.
        still_open: Those before it that have not ended.
    """
    waits = sorted(still_open)
    closed = []
    for at, (first, last) in enumerate(zip(groups.firsts, groups.lasts, strict=True)):
        if last >= opened or has_bit(packed, at):
            continue
        following = bisect_left(waits, first)
        if following == len(waits) or waits[following] > last:
            closed.append(at)
    return closed


def planned(
    shards: Callable[[], Iterable[Sequence[int]]],
    *,
    most_branches: int | None = None,
    at_once: int = _BRANCHES_AT_ONCE,
) -> tuple[GroupPlan, list[PartitionGroups]]:
    """Return the plan of a stage, and the groups of each of its partitions.

    Args:
        shards: Returns the hashes of the branches of each shard, in order. It is called several times.
        most_branches: The most branches of a partition of several groups. A group with more than half of
            that is a partition by itself. None goes by the number of all branches.
        at_once: The most branches whose hashes are in memory at once.
    """
    sizes = array(_NUMBERS, (len(hashes) for hashes in shards()))
    total = sum(sizes)
    if most_branches is None:
        most_branches = min(_MOST_BRANCHES, max(_LEAST_BRANCHES, total // _PARTITIONS))
    groups = _groups(shards, total, at_once)
    ends = _summed(sizes)
    parts = [
        PartitionGroups(*(column[begin:end] for column in groups))
        for begin, end in _cuts(groups.counts, most_branches)
    ]
    return GroupPlan(
        partitions=tuple(_partition(part, ends, alone_above=most_branches // 2) for part in parts)
    ), parts


def _summed(sizes: array[int]) -> array[int]:
    """Return the number of branches before each shard, and before the one after the last."""
    ends = array("Q", [0])
    for size in sizes:
        ends.append(ends[-1] + size)
    return ends


def _groups(
    shards: Callable[[], Iterable[Sequence[int]]], total: int, at_once: int
) -> PartitionGroups:
    """Return all groups in the order of first appearance."""
    slices = max(1, -(-total // at_once))
    found = PartitionGroups(array("Q"), array(_NUMBERS), array(_NUMBERS), array(_NUMBERS))
    # The group that begins with a branch, plus 1: a sort by first appearance without a comparison.
    begun = array(_NUMBERS, bytes(array(_NUMBERS).itemsize * total))
    for number in range(slices):
        _add_slice(found, begun, shards(), slices, number)
    order = array(_NUMBERS, (at - 1 for at in begun if at))
    del begun
    columns, ordered = list(found), []
    del found
    # One after the other, so that not all of them are there twice.
    while columns:
        column = columns.pop(0)
        ordered.append(array(column.typecode, map(column.__getitem__, order)))
    return PartitionGroups(*ordered)


def _add_slice(
    found: PartitionGroups,
    begun: array[int],
    shards: Iterable[Sequence[int]],
    slices: int,
    number: int,
) -> None:
    known: dict[int, int] = {}
    index = 0
    for shard, hashes in enumerate(shards):
        for one in hashes:
            if slices == 1 or one % slices == number:
                at = known.get(one)
                if at is None:
                    at = known[one] = len(found.hashes)
                    begun[index] = at + 1
                    found.hashes.append(one)
                    found.firsts.append(shard)
                    found.lasts.append(shard)
                    found.counts.append(1)
                else:
                    found.lasts[at] = shard
                    found.counts[at] += 1
            index += 1


def _cuts(counts: array[int], most: int) -> Iterator[tuple[int, int]]:
    """Yield where each partition begins and ends among the groups."""
    begin = held = 0
    for at, count in enumerate(counts):
        is_alone = count > most // 2
        if at > begin and (is_alone or held + count > most):
            yield begin, at
            begin, held = at, 0
        held += count
        if is_alone:
            yield begin, at + 1
            begin, held = at + 1, 0
    if begin < len(counts):
        yield begin, len(counts)


def _partition(groups: PartitionGroups, ends: array[int], *, alone_above: int) -> PartitionPlan:
    branches, first, last = sum(groups.counts), min(groups.firsts), max(groups.lasts)
    is_alone = branches > alone_above and len(groups.hashes) == 1
    read = ends[last + 1] - ends[first]
    due = _due_alone(first, last) if is_alone else _due(groups, ends, branches / read)
    return PartitionPlan(
        groups=len(groups.hashes),
        branches=branches,
        first=first,
        last=last,
        due=due,
        is_alone=is_alone,
    )


def _due_alone(first: int, last: int) -> tuple[int, ...]:
    step = max(1, (last - first + 1) // _TIMES_ALONE)
    return tuple(dict.fromkeys([*range(first + step - 1, last, step), last]))


def _due(groups: PartitionGroups, ends: array[int], share: float) -> tuple[int, ...]:
    """Return at the end of which shards a partition is worth being processed.

    Args:
        groups: Its groups.
        ends: The number of branches before each shard.
        share: The share of its branches among all of the shards that it has some in.
    """
    due: list[int] = []
    waiting = 0
    begin = None
    half = sum(groups.counts) / 2
    by_last = sorted(zip(groups.lasts, groups.firsts, groups.counts, strict=True))
    for at, (last, first, count) in enumerate(by_last):
        waiting += count
        begin = first if begin is None else min(begin, first)
        is_last = at + 1 == len(by_last)
        if not is_last and by_last[at + 1][0] == last:
            continue
        if share < _WORTH:
            # Each time, it reads the answers of all: twice is enough.
            is_due = not due and waiting >= half
        else:
            is_due = waiting >= _WORTH * (ends[last + 1] - ends[begin])
        if is_due or is_last:
            due.append(last)
            waiting, begin = 0, None
    return tuple(due)
