"""Reads the answers of a partition of groups, one shard in memory at a time."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from fanout.aggregators import Part
from fanout.core.group_hashes import encode_hashes, group_hash
from fanout.policy.packing import shard_chunk
from fanout.runs.branch_groups import follows_chunks, shard_groups
from workers.reduce.frontier import leaf_of
from workers.reduce.items import item_of, shard_branches

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Container, Iterable, Iterator, Sequence

    from fanout.core.ids import StageId
    from fanout.core.spec import RunSpec
    from fanout.policy.group_plans import PartitionGroups
    from workers.context.worker_context import WorkerContext

__all__ = ["GroupLeaves", "Leaf", "complete_groups"]

# Shards whose groups are read in one round trip: some 4 KB each.
_PAGE = 64
# What a part takes in memory besides its bytes.
_PART_BYTES = 50

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

    def parts(self, shard: int, positions: Iterable[int], hashes: Sequence[int]) -> Iterator[Leaf]:
        """Yield the parts at some positions of a shard that has ended."""
        shard_id = self._map_id.shard(shard)
        content, outcomes = self._store.shard(shard_id), self._store.outcomes(shard_id)
        per_chunk = self._spec.branches_per_chunk
        if not outcomes:
            # Raises if the run was deleted meanwhile.
            self._store.run(shard_id.run_id)
        for position in positions:
            outcome = outcomes[position]
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

    Those that do not fit into memory are left out: at least one is there, and the others can be asked for
    again.

    Args:
        leaves: The branches of the map.
        groups: The groups of the partition.
        chosen: Their numbers; all their branches have ended.
        most_bytes: The bytes of parts in memory.
    """
    reading = _Reading(groups, chosen, most_bytes)
    shards = range(min(map(groups.firsts.__getitem__, chosen)), 1 + max(reading.ends))
    for found in leaves.of_groups(shards, reading.wanted):
        if isinstance(found, int):
            yield from reading.ended(found)
        else:
            reading.add(found)


class _Reading:
    """The parts in memory, by group and name, each as bytes: a third of what the objects take."""

    def __init__(self, groups: PartitionGroups, chosen: Sequence[int], most_bytes: int) -> None:
        # The group of each hash.
        self.wanted = {groups.hashes[at]: at for at in chosen}
        self.ends: defaultdict[int, list[int]] = defaultdict(list)
        for at in chosen:
            self.ends[groups.lasts[at]].append(at)
        self._hashes: array[int] = groups.hashes
        self._lasts: array[int] = groups.lasts
        self._held: dict[int, dict[str, list[bytes]]] = {}
        self._size = 0
        self._most_bytes = most_bytes

    def add(self, leaf: Leaf) -> None:
        at = self.wanted.get(leaf.hash)
        if at is None:
            return
        data = _packed(leaf.part)
        self._held.setdefault(at, {}).setdefault(leaf.part.group, []).append(data)
        self._size += len(data) + _PART_BYTES
        if self._size > self._most_bytes and len(self._held) > 1:
            self._leave_out()

    def _leave_out(self) -> None:
        """Forget the groups that are complete last, until a quarter of the room is free."""
        latest_last = sorted(self._held, key=lambda at: (self._lasts[at], at))
        while self._size > self._most_bytes * 3 // 4 and len(latest_last) > 1:
            at = latest_last.pop()
            del self.wanted[self._hashes[at]]
            self._forget(at)

    def _forget(self, at: int) -> Iterable[list[bytes]]:
        names = self._held.pop(at, {}).values()
        for parts in names:
            self._size -= sum(len(data) + _PART_BYTES for data in parts)
        return names

    def ended(self, shard: int) -> Iterator[tuple[int, list[list[Part]]]]:
        """Yield the groups that end with a shard."""
        for at in self.ends.pop(shard, ()):
            if self._hashes[at] in self.wanted:
                yield at, [[_part(data) for data in parts] for parts in self._forget(at)]
