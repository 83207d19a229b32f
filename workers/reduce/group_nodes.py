"""The nodes of groups: which stages they are in, how many a group has, and what comes of them."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from msgspec import structs

from fanout.aggregators import Node, Part, lacking
from fanout.core.errors import StoredDataError
from fanout.core.ids import StageId
from fanout.runs.token_counts import packing_ratio, reduce_room
from workers.reduce.frontier import node_chunk, part_of
from workers.reduce.group_parts import GroupLeaves
from workers.reduce.items import ended_branches
from workers.reduce.writing import SHOWN_PARTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fanout.aggregators import Tally
    from fanout.core.partitions import PartitionRecord
    from fanout.core.records import Chunk
    from fanout.core.reduces import Reduce
    from fanout.core.spec import RunSpec
    from fanout.core.state import RunRecord
    from workers.context.worker_context import WorkerContext

__all__ = [
    "NodePart",
    "Reading",
    "level_of",
    "measures",
    "node_of",
    "node_parts",
    "nodes_in_group",
    "only_name",
    "reason_for_none",
    "stage_has_ended",
    "target_of",
    "without_call",
]

# The column of a node that says how many its group has at its level.
_OF = "of"


def level_of(run: RunRecord, source: StageId) -> int:
    """Return the level of the nodes that a stage has; 0 for the map."""
    return source.stage - run.base_stage if source.stage else 0


def target_of(run: RunRecord, source: StageId) -> StageId:
    """Return the stage that the outcomes of another one are packed into."""
    return StageId(run.run_id, run.base_stage + level_of(run, source) + 1)


def stage_has_ended(context: WorkerContext, run: RunRecord, stage_id: StageId) -> bool:
    """Return whether all branches of a stage have outcomes that stand."""
    store = context.connections.store
    record = store.stage(stage_id)
    # A branch that a retry takes back has an outcome until its shard begins again. Otherwise, only the
    # callbacks of shards may be lost.
    has_all = record.done >= record.total and (stage_id.stage > 0 or not run.retry)
    return record.sealed and (has_all or store.progress(stage_id).is_complete)


def nodes_in_group(chunk: Chunk) -> int:
    """Return how many nodes the group of a node has at its level; 0 if that was not known."""
    return int(str(chunk.columns.get(_OF, 0)))


def measures(
    context: WorkerContext, run: RunRecord, spec: RunSpec, number: int
) -> tuple[float, int]:
    """Return the bytes per token of the answers of a run, and the tokens of them that fit a prompt.

    The first shard must have ended: its answers show how many tokens they have.

    Raises:
        SpecError: The job leaves no room for answers.
    """
    map_id = StageId(run.run_id, 0)
    leaves, reduce = GroupLeaves(context, spec, map_id, number), spec.reductions[number]

    def texts() -> Iterator[str]:
        [(_, hashes)] = leaves.hashes([0])
        for leaf in islice(leaves.parts(0, range(len(hashes)), hashes), SHOWN_PARTS):
            yield leaf.part.text

    ratio = packing_ratio(context.connections.store, run.run_id, spec, reduce, texts())
    return ratio, reduce_room(spec, reduce, ratio)


class NodePart(NamedTuple):
    """A node as a part of the next level: its shard among those of its partition, and its position."""

    shard: int
    position: int
    nodes: int
    part: Part


class Reading:
    """What is read of a partition: the shards, and whether all are read to their end."""

    def __init__(self, shards: Sequence[int]) -> None:
        self.shards = shards
        self.is_read = False


def node_of(chunk: Chunk, nodes: int) -> Chunk:
    """Return a node that says how many its group has."""
    return structs.replace(chunk, columns={**chunk.columns, _OF: str(nodes)})


def only_name(names: set[str]) -> str:
    """Return the name of the only group of a partition.

    Raises:
        StoredDataError: There are others.
    """
    if len(names) > 1:
        raise StoredDataError("two groups of the run have the same hash")
    return names.pop()


def reason_for_none(tally: Tally, least: float) -> str | None:
    """Return why no call is made for a group: no answer, or too few, are behind it; None if enough are."""
    problem = lacking(tally, least)
    if problem is None and not tally.behind:
        problem = f"no answer is behind it: {tally.coverage().words}"
    return problem


def without_call(reduce: Reduce, group: str, tally: Tally, problem: str) -> Chunk:
    """Return the only node of a group that has no aggregate, and why."""
    failed = tally.branches - tally.behind
    none = Part(group=group, text="", count=tally.behind, failed=failed)
    node = Node(parts=[none], taken=tally.branches, key=0, tally=tally)
    chunk = node_chunk(node, reduce, group=group, position=0, level=0, problem=problem)
    return node_of(chunk, 1)


def node_parts(
    context: WorkerContext,
    stage_id: StageId,
    reading: Reading,
    begins: PartitionRecord,
    *,
    is_over: bool,
    on_shard: Callable[[], None],
) -> Iterator[NodePart]:
    """Yield the nodes of a partition that have ended, in order, from where a record says.

    Args:
        context: The worker's process.
        stage_id: Their stage.
        reading: The shards of the partition.
        begins: Where to begin.
        is_over: Whether the stage has ended.
        on_shard: Called before a shard is read.
    """
    for number in range(begins.shard, len(reading.shards)):
        on_shard()
        found = ended_branches(
            context,
            stage_id.shard(reading.shards[number]),
            start=begins.position if number == begins.shard else 0,
            is_complete=is_over,
        )
        if found is None:
            return
        for position, chunk, outcome in found:
            yield NodePart(number, position, nodes_in_group(chunk), part_of(chunk, outcome))
    reading.is_read = True
