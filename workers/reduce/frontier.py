"""The tree of calls follows the answers: its nodes are packed and published while branches still go on.

A stage has a frontier: the first of its shards, in the order of the input, that has not ended. When a shard
ends, the outcomes before the frontier are packed, and each node that no later outcome can change becomes a
branch of the next stage. Which nodes there are depends on the input and the answers, never on the order
in which they came, so that each process finds the same ones. Who writes the next shard first writes the
new frontier with it, in one step, and others go on from there.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from fanout.aggregators import (
    NodePacker,
    Part,
    Place,
    Tally,
    cited_node,
    decode_places,
    encode_places,
    leaf_part,
    part_key,
    render_input,
    with_sources,
)
from fanout.core.errors import SpecError
from fanout.core.ids import StageId
from fanout.core.records import Chunk, ErrorKind
from fanout.core.reduces import reduce_name
from fanout.core.state import Frontier
from fanout.runs.enqueue import has_frontier
from fanout.runs.token_counts import packing_ratio, reduce_room
from workers.reduce.items import ended_branches, item_of, tally_of
from workers.reduce.refining import RefineCalls
from workers.reduce.room_above import is_only, with_room_above
from workers.reduce.writing import MORE_SHARDS, SHOWN_PARTS, StageWriter

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from fanout.aggregators import Node
    from fanout.core.cells import Cell
    from fanout.core.ids import ShardId
    from fanout.core.records import Outcome
    from fanout.core.reduces import Reduce
    from fanout.core.spec import RunSpec
    from fanout.core.state import RunRecord
    from workers.context.worker_context import WorkerContext

__all__ = [
    "follow",
    "group_counts",
    "is_due",
    "leaf_of",
    "may_succeed",
    "node_chunk",
    "node_places",
    "node_tally",
    "part_of",
    "refine_calls",
    "write_rest",
]


_tally = msgspec.json.Decoder(Tally).decode


def follow(context: WorkerContext, shard_id: ShardId) -> None:
    """Publish the nodes that the end of a shard completes, if its run has trees that can begin."""
    run_id, store = shard_id.run_id, context.connections.store
    spec = context.runs.specs.get(run_id)
    if not has_frontier(spec):
        return
    trees = [reduce for reduce in spec.reductions if reduce.has_frontier]
    if shard_id.stage == 0:
        # Clusters are found among all answers.
        trees = [reduce for reduce in trees if not reduce.clusters]
    if shard_id.stage > 0 and len(spec.reductions) > 1:
        own = reduce_name(context.runs.shards.get(shard_id).chunks[0].columns)
        trees = [reduce for reduce in trees if reduce.name == own]
    if not trees:
        return
    run = store.run(run_id)
    if run.has_ended or 0 < shard_id.stage <= run.base_stage:
        return
    may_go_on = run.halt is None and may_succeed(context, spec, run_id)
    for reduce in trees:
        if reduce.refines:
            if run.halt is not None or may_go_on:
                refine_calls(context, run, spec, reduce).follow(run)
        elif may_go_on:
            # What the job cannot do is reported once all branches have ended.
            with suppress(SpecError):
                _Feed(context, run, spec, reduce, shard_id.stage_id).follow(shard_id.shard)


def write_rest(
    context: WorkerContext, run: RunRecord, spec: RunSpec, reduce: Reduce, stage_id: StageId
) -> None:
    """Write the last nodes of a tree over a stage that has ended.

    Raises:
        SpecError: The job leaves no room for answers.
    """
    if stage_id.stage > 0:
        known = context.connections.store.frontier(stage_id, reduce=reduce.name)
        if known.frontier.branches <= 1:
            # It has its root.
            return
    _Feed(context, run, spec, reduce, stage_id).advance(is_complete=True)


def refine_calls(
    context: WorkerContext, run: RunRecord, spec: RunSpec, reduce: Reduce
) -> RefineCalls:
    """Return the calls that refine the aggregate of a run."""
    parts = partial(_parts_from, context, spec, reduce, StageId(run.run_id, 0))
    return RefineCalls(context, run, spec, reduce, parts)


def may_succeed(context: WorkerContext, spec: RunSpec, run_id: str) -> bool:
    """Return whether a run does not seem to fail: its tree would be paid for in vain."""
    least = max(spec.min_success, spec.min_group_success)
    if not least:
        return True
    record = context.connections.store.stage(StageId(run_id, 0))
    return record.succeeded >= least * record.done


def is_due(before: int, after: int) -> bool:
    """Return whether the shards behind a frontier are to be read, for nodes that they may complete.

    A node of many shards would otherwise be read at the end of each of them. The number of shards grows by
    a fourth from one look to the next, so that all looks together read some five times as much as the last.

    Args:
        before: How many shards behind the frontier had ended at most, before the end of this one.
        after: How many have ended now; not more, if this one is behind a shard that goes on.
    """
    look = 1
    while look <= before:
        look += max(1, look // 4)
    return look <= after


class _Feed:
    """Packs the outcomes of a stage into the next one."""

    def __init__(
        self,
        context: WorkerContext,
        run: RunRecord,
        spec: RunSpec,
        reduce: Reduce,
        source: StageId,
    ) -> None:
        self._context = context
        self._store = context.connections.store
        self._spec = spec
        self._reduce = reduce
        self._source = source
        self._level = source.stage - run.base_stage if source.stage else 0
        target = StageId(run.run_id, run.base_stage + self._level + 1)
        self._writer = StageWriter(context, target, reduce, more_shards=MORE_SHARDS)
        self._room_tokens = 0

    def follow(self, shard: int) -> None:
        """Write and publish the nodes that the end of a shard completes, if it is time to look for some."""
        if self._source.stage == 0 or not self._reduce.name:
            first_open = self._store.progress(self._source).first_open
            begins = self._writer.begin().shard
            if not is_due(shard - begins, first_open - begins):
                return
        self.advance(is_complete=False)

    def advance(self, *, is_complete: bool) -> None:
        """Write and publish the nodes that are known.

        Args:
            is_complete: Whether the source has ended.
        """
        is_done = False
        while not is_done:
            ends: list[Frontier] = []
            nodes = self._nodes(self._writer.begin(), ends, is_complete=is_complete)
            is_done = self._writer.write(nodes, partial(_last_of, ends))

    def _nodes(
        self, begins: Frontier, ends: list[Frontier], *, is_complete: bool
    ) -> Iterator[Chunk]:
        """Yield the nodes from a frontier on, as chunks; ``ends`` gets the frontier after each."""
        places: list[Frontier] = []
        made = begins.branches

        def parts() -> Iterator[Part]:
            for place, part in _parts_from(
                self._context,
                self._spec,
                self._reduce,
                self._source,
                begins,
                is_complete=is_complete,
            ):
                places.append(place)
                yield part

        may_be_root = is_complete and not made
        packed = self._packed(parts(), is_complete=is_complete)
        for node, is_root in is_only(packed, may_be=may_be_root):
            made += 1
            last = places[node.taken - 1]
            del places[: node.taken]
            ends.append(Frontier(shard=last.shard, position=last.position + 1, branches=made))
            chunk = node_chunk(
                node,
                self._reduce,
                group="",
                position=made - 1,
                level=self._level,
                cites=self._spec.sources,
            )
            room = self._room_tokens
            yield with_room_above(
                chunk, self._spec, self._reduce, room_tokens=room, is_root=is_root
            )

    def _packed(self, parts: Iterable[Part], *, is_complete: bool) -> Iterator[Node]:
        parts = iter(parts)
        head = list(islice(parts, SHOWN_PARTS))
        if not is_complete and self._level == 0 and len(head) < SHOWN_PARTS:
            # The ratio is that of the first ones.
            return
        texts = (part.text for part in head)
        ratio = packing_ratio(self._store, self._source.run_id, self._spec, self._reduce, texts)
        room = self._room_tokens = reduce_room(self._spec, self._reduce, ratio)
        packer = NodePacker(
            room_tokens=room, level=self._level, bytes_per_token=ratio, cites=self._spec.sources
        )
        for some in (head, parts):
            for part in some:
                yield from packer.add(part)
        if is_complete:
            yield from packer.finish()


def _parts_from(
    context: WorkerContext,
    spec: RunSpec,
    reduce: Reduce,
    source: StageId,
    begins: Frontier,
    *,
    is_complete: bool,
) -> Iterator[tuple[Frontier, Part]]:
    """Yield the outcomes of a stage that follow a frontier as parts of a reduce, each with its place."""
    for number in _shards_from(context, reduce, source, begins.shard, is_complete=is_complete):
        start = begins.position if number == begins.shard else 0
        found = ended_branches(context, source.shard(number), start=start, is_complete=is_complete)
        if found is None:
            # It is being processed again.
            return
        for position, chunk, outcome in found:
            place = Frontier(shard=number, position=position)
            is_leaf = source.stage == 0
            part = leaf_of(spec, reduce, chunk, outcome) if is_leaf else part_of(chunk, outcome)
            yield place, part


def _shards_from(
    context: WorkerContext, reduce: Reduce, source: StageId, first: int, *, is_complete: bool
) -> Iterable[int]:
    """Return the shards of a stage from one on, up to the first that has not ended."""
    store = context.connections.store
    if source.stage > 0 and reduce.name:
        # Shards of other reduces may still be open. The end of one's own is seen as it is read.
        own = store.shards_of(source, reduce=reduce.name)
        return (number for number in own if number >= first)
    progress = store.progress(source)
    return range(first, progress.written if is_complete else progress.first_open)


def _last_of(ends: Sequence[Frontier], count: int) -> Frontier:
    return ends[count - 1]


def leaf_of(spec: RunSpec, reduce: Reduce, chunk: Chunk, outcome: Outcome) -> Part:
    """Return a branch of the map as a part of the first level."""
    ref = spec.variants.ref(outcome.index)
    key = part_key(chunk.document, chunk.position, ref.aspect, ref.model, ref.sample)
    tally = tally_of(spec, chunk, outcome)
    place = None
    if spec.sources and reduce.kind == "llm":
        pages, is_part = tuple(chunk.pages), spec.split != "none"
        place = Place(outcome.index, chunk.document, chunk.position, pages, ref.chunk, is_part)
    return leaf_part(item_of(spec, reduce, chunk, outcome), key=key, tally=tally, place_of=place)


def node_chunk(
    node: Node,
    reduce: Reduce,
    *,
    group: str,
    position: int,
    level: int,
    cites: bool = False,
    problem: str | None = None,
) -> Chunk:
    """Return a node as the chunk of a branch; its columns say what it stands for.

    Args:
        node: The node.
        reduce: Its reduce.
        group: Its group.
        position: Its number among the nodes of its group and level.
        level: Its level: see NodePacker.
        cites: Whether its answer cites sources.
        problem: Why the branch makes no call: too little is behind the answer of its group.
    """
    columns: dict[str, Cell]
    columns = {
        "group": group,
        "count": str(node.count),
        "failed": str(node.failed),
        "key": f"{node.key:016x}",
        "tally": msgspec.json.encode(node.tally).decode(),
        **reduce.columns,
    }
    if problem is not None:
        return Chunk(text="", document=group, document_index=0, columns=columns, error=problem)
    if cites:
        text, places = cited_node(node.parts, level=level, tally=node.tally)
        columns["sources"] = encode_places(places)
        if level:
            columns["level"] = str(level)
    else:
        text = render_input(node.parts, level=level)
    return Chunk(
        text=text,
        document=group,
        document_index=0,
        position=position,
        columns=columns,
    )


def group_counts(chunk: Chunk) -> tuple[str, int, int]:
    """Return the group of a node, and its branches with and without an answer."""
    columns = chunk.columns
    return str(columns["group"]), int(str(columns["count"])), int(str(columns["failed"]))


def node_tally(chunk: Chunk, outcome: Outcome) -> Tally:
    """Return what is behind the answer of a node."""
    text = chunk.columns.get("tally")
    tally = Tally() if text is None else _tally(str(text))
    if outcome.output is None:
        return tally if chunk.error else tally.without_answers(outcome.kind or ErrorKind.INTERNAL)
    return tally.with_cuts(truncated=int(outcome.is_cut))


def part_of(chunk: Chunk, outcome: Outcome) -> Part:
    """Return the answer of a node as a part of the next level."""
    group, count, failed = group_counts(chunk)
    if outcome.output is None:
        failed, count = failed + count, 0
    part = Part(
        group=group,
        text=outcome.output or "",
        count=count,
        failed=failed,
        key=int(str(chunk.columns["key"]), 16),
        tally=node_tally(chunk, outcome),
    )
    places = node_places(chunk)
    return with_sources(part, places) if places else part


def node_places(chunk: Chunk) -> dict[str, Place]:
    """Return where the sources are from that a node shows, by id; empty in a job without sources."""
    places = chunk.columns.get("sources")
    return {} if places is None else decode_places(str(places))
