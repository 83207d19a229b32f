"""The outputs that a model compares: where they are, which are equal, and in which groups they compete."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import defaultdict
from itertools import groupby
from typing import TYPE_CHECKING

import msgspec

from fanout.aggregators import CoverageCounter, lacking
from fanout.aggregators.base import NameSample
from fanout.core.ids import StageId
from fanout.core.neighbours import around_in
from fanout.policy.packing import shard_chunk
from workers.reduce.items import item_of, outcomes_at, tally_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fanout.aggregators import Item, Tally
    from fanout.core.records import Chunk, Outcome, Shard
    from fanout.core.reduces import Reduce
    from fanout.core.spec import RunSpec
    from fanout.policy.tournaments import Pair
    from workers.context.worker_context import WorkerContext

__all__ = ["Entrants", "Group", "slot_of"]

# Characters of outputs that are in memory together, beside those of a shard.
_HELD_CHARS = 32_000_000
_DIGEST_BYTES = 12


def slot_of(spec: RunSpec, index: int) -> int:
    """Return the number of the slot whose best output ``best`` finds: a chunk and aspect.

    Where a chunk has one output for each aspect, these are the candidates, and the slot is the chunk.
    """
    variants = spec.variants
    each = len(variants.models) * variants.samples
    return index // (each if each > 1 else variants.count)


class Group(msgspec.Struct):
    """Outputs that compete with each other.

    Attributes:
        name: Its name.
        items: The first branch of each distinct output, by index.
        succeeded: The number of its branches with an output.
        missing: Its branches without one.
    """

    name: str
    items: list[int]
    succeeded: int = 0
    missing: NameSample | None = None

    def add_missing(self, item: Item) -> None:
        """Note a branch without an output."""
        if self.missing is None:
            self.missing = NameSample()
        self.missing.add(item)

    @property
    def failed(self) -> int:
        """The number of its branches without an output."""
        return 0 if self.missing is None else self.missing.count


class Entrants:
    """The outputs of the branches of a run: numbers stay in memory, and texts are read by shard.

    Args:
        context: The worker's process.
        run_id: The run.
        spec: Its job.
        reduce: The reduce that compares.

    Attributes:
        behind: What is behind the aggregates, by their names. The outputs of one with too little behind it
            are no items of groups, as to compare them would be paid for in vain.
    """

    def __init__(self, context: WorkerContext, run_id: str, spec: RunSpec, reduce: Reduce) -> None:
        self._store = context.connections.store
        self._map_id = StageId(run_id, 0)
        self._spec = spec
        self._reduce = reduce
        self._firsts: list[int] = []
        self._sizes: dict[int, int] = {}
        # Further branches with the output of another one, by that one.
        self.copies: dict[int, list[int]] = defaultdict(list)
        self.behind: dict[str, Tally] = {}
        self.groups: list[Group] = list(self._read())

    @property
    def weights(self) -> dict[int, int]:
        """How many branches have the output of another one, those with copies only."""
        return {one: 1 + len(others) for one, others in self.copies.items()}

    def _read(self) -> Iterator[Group]:
        groups: dict[str | int, Group] = {}
        known: dict[tuple[str | int, bytes], int] = {}
        is_best = self._reduce.kind == "best"
        counter = CoverageCounter()
        for number in range(self._store.stage(self._map_id).shards):
            shard_id = self._map_id.shard(number)
            shard = self._store.shard(shard_id)
            self._firsts.append(shard.first)
            for _, outcome in sorted(self._store.outcomes(shard_id).items()):
                chunk = shard_chunk(shard, outcome.index, self._spec.branches_per_chunk)
                if is_best:
                    key: str | int = slot_of(self._spec, outcome.index)
                    name = self._slot_name(chunk, outcome)
                else:
                    key = name = item_of(self._spec, self._reduce, chunk, outcome).group
                if key not in groups:
                    groups[key] = Group(name, [])
                # The best ones of all chunks are one aggregate.
                counter.add("" if is_best else name, tally_of(self._spec, chunk, outcome))
                self._add(groups[key], key, known, chunk, outcome)
        # Two documents may have the same name.
        taken: set[str] = set()
        for key, group in groups.items():
            if group.name in taken:
                group.name = f"{group.name} #{key}"
            taken.add(group.name)
        self.behind = counter.tallies()
        for group in groups.values():
            tally = self.behind["" if is_best else group.name]
            if lacking(tally, self._spec.min_group_success):
                group.items = []
            yield group

    def _add(
        self,
        group: Group,
        key: str | int,
        known: dict[tuple[str | int, bytes], int],
        chunk: Chunk,
        outcome: Outcome,
    ) -> None:
        if outcome.output is None:
            group.add_missing(item_of(self._spec, self._reduce, chunk, outcome))
            return
        group.succeeded += 1
        text = outcome.output.strip().encode(errors="surrogatepass")
        digest = hashlib.blake2b(text, digest_size=_DIGEST_BYTES).digest()
        first = known.setdefault((key, digest), outcome.index)
        if first != outcome.index:
            self.copies[first].append(outcome.index)
            return
        group.items.append(outcome.index)
        self._sizes[outcome.index] = len(outcome.output)

    def _slot_name(self, chunk: Chunk, outcome: Outcome) -> str:
        spec = self._spec
        aspect = spec.variants.ref(outcome.index).aspect
        has_candidates = len(spec.variants.models) * spec.variants.samples > 1
        parts = [chunk.document]
        if spec.split != "none":
            parts.append(f"chunk {chunk.position}")
        if aspect is not None and has_candidates:
            parts.append(aspect)
        return " · ".join(parts)

    def read(self, indices: Iterable[int]) -> Iterator[tuple[Chunk, Outcome]]:
        """Yield chunk and outcome of branches, by index; each shard with one of them is read once."""
        for number, some in groupby(sorted({*indices}), key=self._shard_number):
            shard_id = self._map_id.shard(number)
            shard = self._store.shard(shard_id)
            indices = list(some)
            outcomes = outcomes_at(self._store, shard_id, [one - shard.first for one in indices])
            for index, outcome in zip(indices, outcomes, strict=True):
                yield self._chunk(shard, index), outcome

    def _chunk(self, shard: Shard, index: int) -> Chunk:
        spec = self._spec
        chunk = shard_chunk(shard, index, spec.branches_per_chunk)
        if not spec.neighbours:
            return chunk
        around = around_in(shard, spec.variants.ref(index).chunk, spec.neighbours)
        return msgspec.structs.replace(chunk, around=around)

    def _shard_number(self, index: int) -> int:
        return bisect_right(self._firsts, index) - 1

    def passes(self, pairs: list[Pair]) -> list[list[int]]:
        """Return in which order to read the outputs of pairs, as positions in ``pairs``.

        In each pass the second outputs of its pairs fit into memory, and the first ones come by index.
        """
        size, passes = 0, list[list[int]]()
        before = -1
        for position in sorted(range(len(pairs)), key=lambda at: pairs[at].other):
            other = pairs[position].other
            if other != before:
                size, before = size + self._sizes[other], other
                if not passes or size > _HELD_CHARS:
                    passes.append([])
                    size = self._sizes[other]
            passes[-1].append(position)
        for one in passes:
            one.sort(key=lambda at: pairs[at])
        return passes
