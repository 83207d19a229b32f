"""The trees of calls of a reduce with groups: each stage is packed when the one before it has ended."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from fanout.aggregators import Node, Part, Tally, lacking, nodes_of
from fanout.core.ids import StageId
from fanout.runs.token_counts import packing_ratio, reduce_room
from workers.reduce.frontier import leaf_of, node_chunk, part_of
from workers.reduce.items import branches, reduce_branches
from workers.reduce.writing import StageWriter, write_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.core.records import Chunk
    from fanout.core.reduces import Reduce
    from fanout.core.spec import RunSpec
    from fanout.core.state import RunRecord
    from workers.context.worker_context import WorkerContext

__all__ = ["write_groups"]


def write_groups(
    context: WorkerContext, run: RunRecord, spec: RunSpec, reduce: Reduce, stage_id: StageId
) -> None:
    """Write the nodes of the groups that a stage leaves with several answers.

    Raises:
        SpecError: The job leaves no room for answers.
    """
    run_id, stage = run.run_id, stage_id.stage
    level = stage - run.base_stage if stage else 0
    groups = (
        _partials(context, reduce, stage_id) if stage else _leaves(context, spec, reduce, run_id)
    )
    if not groups:
        return
    texts = (part.text for some in groups.values() for part in some)
    ratio = packing_ratio(context.connections.store, run_id, spec, reduce, texts)
    room = reduce_room(spec, reduce, ratio)
    chunks = partial(_chunks, spec, reduce, groups, level, room, ratio)
    target = StageId(run_id, run.base_stage + level + 1)
    write_all(StageWriter(context, target, reduce), lambda first: islice(chunks(), first, None))


def _leaves(
    context: WorkerContext, spec: RunSpec, reduce: Reduce, run_id: str
) -> dict[str, list[Part]]:
    groups: dict[str, list[Part]] = defaultdict(list)
    for chunk, outcome in branches(context, StageId(run_id, 0)):
        part = leaf_of(spec, reduce, chunk, outcome)
        groups[part.group].append(part)
    return groups


def _partials(context: WorkerContext, reduce: Reduce, stage_id: StageId) -> dict[str, list[Part]]:
    """Return the partial answers of a stage, for the groups that need a further one."""
    groups: dict[str, list[Part]] = defaultdict(list)
    for chunk, outcome in reduce_branches(context, stage_id, reduce):
        part = part_of(chunk, outcome)
        groups[part.group].append(part)
    return {group: parts for group, parts in groups.items() if len(parts) > 1}


def _chunks(
    spec: RunSpec,
    reduce: Reduce,
    groups: dict[str, list[Part]],
    level: int,
    room_tokens: int,
    bytes_per_token: float,
) -> Iterator[Chunk]:
    for group, parts in groups.items():
        nodes = nodes_of(
            parts, room_tokens=room_tokens, level=level, bytes_per_token=bytes_per_token
        )
        tally = Tally.total(part.tally for part in parts)
        problem = lacking(tally, spec.min_group_success)
        if level == 0 and problem is not None:
            # No call could change it.
            failed = tally.branches - tally.behind
            none = Part(group=group, text="", count=tally.behind, failed=failed)
            node = Node(parts=[none], taken=len(parts), key=0, tally=tally)
            yield node_chunk(node, reduce, group=group, position=0, level=level, problem=problem)
            continue
        for position, node in enumerate(nodes):
            yield node_chunk(
                node, reduce, group=group, position=position, level=level, cites=spec.sources
            )
