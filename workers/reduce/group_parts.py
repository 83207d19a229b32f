"""Reads the answers of a partition of groups, one shard in memory at a time."""

from __future__ import annotations

from array import array
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from fanout.aggregators import Part
from fanout.core.group_hashes import encode_hashes, group_hash
from fanout.policy.packing import shard_chunk
from fanout.runs.branch_groups import follows_chunks, shard_groups
from fanout.system.external_sort import Scratch
from workers.reduce.frontier import leaf_of
from workers.reduce.items import item_of, outcomes_at, shard_branches

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Sequence
    from typing import Self

    from fanout.core.ids import StageId
    from fanout.core.spec import RunSpec
    from fanout.policy.group_plans import PartitionGroups
    from workers.context.worker_context import WorkerContext

__all__ = ["GroupLeaves", "Leaf", "complete_groups"]

# Shards whose groups are read in one round trip: some 4 KB each.
_PAGE = 64
# The number of no part.
_NONE = -1

_packed = msgspec.msgpack.Encoder().encode
_part = msgspec.msgpack.Decoder(Part).decode


class Leaf(NamedTuple):
    """A branch of the map: its shard, its position there, the hash of its group, and its part."""

    shard: int
    position: int
    hash: int
    part: Part


class GroupLeaves:
    """The branches of the map as parts of some groups.

    Args:
        context: The worker's process.
        spec: The job.
        map_id: The stage.
        number: The number of the reduce that has the groups.
        on_shard: Called before a shard is read.
    """

    def __init__(
        self,
        context: WorkerContext,
        spec: RunSpec,
        map_id: StageId,
        number: int,
        on_shard: Callable[[], None] = lambda: None,
    ) -> None:
        self._context = context
        self._store = context.connections.store
        self._spec = spec
        self._map_id = map_id
        self._number = number
        self._reduce = spec.reductions[number]
        self._on_shard = on_shard

    def hashes(self, shards: Sequence[int]) -> Iterator[tuple[int, Sequence[int]]]:
        """Yield shards, each with the hashes of the groups of its branches."""
        for start in range(0, len(shards), _PAGE):
            some = shards[start : start + _PAGE]
            found = self._store.groups_of(self._map_id, self._number, some)
            for shard, hashes in zip(some, found, strict=True):
                yield shard, self._computed(shard) if hashes is None else hashes

    def write_hashes(self, shard: int, *, opening: float) -> None:
        """Write the groups of the branches of a shard that has ended: they go by its answers.

        Args:
            shard: The shard.
            opening: The opening of the run. A retry may reset the shard at any time.
        """
        shard_id = self._map_id.shard(shard)
        is_reset = self._store.is_reopened(shard_id)
        hashes = self._computed(shard)
        if len(hashes) == len(self._context.runs.indices.get(shard_id)):
            self._store.put_groups(
                shard_id, self._number, encode_hashes(hashes), opening=opening, is_reset=is_reset
            )

    def _computed(self, shard: int) -> list[int]:
        """Return the hashes of the groups of the branches of a shard."""
        shard_id, spec, reduce = self._map_id.shard(shard), self._spec, self._reduce
        if follows_chunks(spec, reduce):
            names = shard_groups(spec, reduce, self._store.shard(shard_id))
        else:
            ended = shard_branches(self._context, shard_id, spec.branches_per_chunk)
            names = (item_of(spec, reduce, *branch).group for branch in ended)
        return [group_hash(name, run_id=shard_id.run_id) for name in names]

    def parts(self, shard: int, positions: Sequence[int], hashes: Sequence[int]) -> Iterator[Leaf]:
        """Yield the parts at some positions of a shard that has ended."""
        shard_id = self._map_id.shard(shard)
        content = self._store.shard(shard_id)
        outcomes = outcomes_at(self._store, shard_id, positions)
        per_chunk = self._spec.branches_per_chunk
        for position, outcome in zip(positions, outcomes, strict=True):
            chunk = shard_chunk(content, outcome.index, per_chunk)
            yield Leaf(
                shard, position, hashes[position], leaf_of(self._spec, self._reduce, chunk, outcome)
            )

    def of_groups(self, shards: Sequence[int], wanted: Container[int]) -> Iterator[Leaf | int]:
        """Yield the parts of groups in input order, and the number of each shard after its parts.

        Args:
            shards: The shards, which have ended.
            wanted: The hashes of the groups. It may shrink meanwhile.
        """
        for shard, hashes in self.hashes(shards):
            self._on_shard()
            positions = [at for at, one in enumerate(hashes) if one in wanted]
            if positions:
                yield from self.parts(shard, positions, hashes)
            yield shard


def complete_groups(
    leaves: GroupLeaves, groups: PartitionGroups, chosen: Sequence[int], *, most_bytes: int
) -> Iterator[tuple[int, list[list[Part]]]]:
    """Yield groups with their parts, as their last branches are read; those of each name apart.

    The parts of a group wait in a file until it is complete. Groups whose parts do not fit into it are left
    out: at least one is there, and the others can be asked for again.

    Args:
        leaves: The branches of the map.
        groups: The groups of the partition.
        chosen: Their numbers; all their branches have ended.
        most_bytes: The bytes of parts in the file.

    Raises:
        RunError: There is no room for temporary files.
    """
    with _Reading(groups, chosen, most_bytes) as reading:
        shards = range(min(map(groups.firsts.__getitem__, chosen)), 1 + max(reading.ends))
        for found in leaves.of_groups(shards, reading.wanted):
            if isinstance(found, int):
                yield from reading.ended(found)
            else:
                reading.add(found)


class _Reading:
    """The parts of groups that are not complete yet: in memory are only the numbers of them."""

    def __init__(self, groups: PartitionGroups, chosen: Sequence[int], most_bytes: int) -> None:
        # The group of each hash.
        self.wanted = {groups.hashes[at]: at for at in chosen}
        self.ends: defaultdict[int, list[int]] = defaultdict(list)
        for at in chosen:
            self.ends[groups.lasts[at]].append(at)
        self._groups = groups
        self._parts = _Parts(len(groups.hashes))
        self._least_bytes = most_bytes // 2
        self._most_bytes = most_bytes

    def add(self, leaf: Leaf) -> None:
        at = self.wanted.get(leaf.hash)
        if at is None:
            return
        self._parts.add(at, _packed(leaf.part))
        if self._parts.size > self._most_bytes:
            self._make_room()

    def _make_room(self) -> None:
        """Take another file, for half as much: without the groups that are complete last."""
        before, self._parts = self._parts, _Parts(len(self._groups.hashes))
        with before:
            for at in sorted(before.groups(), key=lambda at: (self._groups.lasts[at], at)):
                size = self._parts.size
                if size and size + before.size_of(at) > self._least_bytes:
                    del self.wanted[self._groups.hashes[at]]
                    continue
                for data in before.of(at):
                    self._parts.add(at, data)
        # A group that is larger than that is not written again for each of its parts.
        self._most_bytes = max(self._most_bytes, 2 * self._parts.size)

    def ended(self, shard: int) -> Iterator[tuple[int, list[list[Part]]]]:
        """Yield the groups that end with a shard."""
        for at in self.ends.pop(shard, ()):
            if self.wanted.pop(self._groups.hashes[at], None) is not None:
                names: dict[str, list[Part]] = {}
                for part in map(_part, self._parts.of(at)):
                    names.setdefault(part.group, []).append(part)
                self._parts.forget(at)
                yield at, list(names.values())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._parts.close()


class _Parts:
    """Parts as bytes in a file, each with a link to the one before it of the same group.

    Args:
        groups: How many groups there are.
    """

    def __init__(self, groups: int) -> None:
        self._pile = Scratch().pile()
        self._ends = array("Q", [0])
        self._before = array("l")
        self._lasts = array("l", [_NONE]) * groups

    @property
    def size(self) -> int:
        """The bytes of the file."""
        return self._pile.size

    def add(self, at: int, data: bytes) -> None:
        """Take a part of a group."""
        self._before.append(self._lasts[at])
        self._lasts[at] = len(self._before) - 1
        self._pile.add(data)
        self._ends.append(self._pile.size)

    def groups(self) -> list[int]:
        """Return the groups that have parts."""
        return [at for at, last in enumerate(self._lasts) if last != _NONE]

    def _numbers(self, at: int) -> array[int]:
        found = array("l")
        number = self._lasts[at]
        while number != _NONE:
            found.append(number)
            number = self._before[number]
        found.reverse()
        return found

    def size_of(self, at: int) -> int:
        """Return the bytes of the parts of a group."""
        return sum(self._ends[one + 1] - self._ends[one] for one in self._numbers(at))

    def of(self, at: int) -> Iterator[bytes]:
        """Yield the parts of a group, in the order in which they came."""
        for number in self._numbers(at):
            start, end = self._ends[number : number + 2]
            yield b"".join(self._pile.read(start, end))

    def forget(self, at: int) -> None:
        """Have no more parts of a group; their room is not free before the file is closed."""
        self._lasts[at] = _NONE

    def close(self) -> None:
        """Give the room back."""
        self._pile.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
