"""The branches of a stage as a reduce reads them, one shard in memory at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.aggregators import Item, Tally
from fanout.core.answer_parts import goes_by_steps
from fanout.core.step_answers import answers_of
from fanout.policy.packing import shard_chunk
from fanout.runs.branch_groups import branch_group

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from fanout.core.ids import ShardId, StageId
    from fanout.core.records import Chunk, Outcome
    from fanout.core.reduces import Reduce
    from fanout.core.spec import RunSpec
    from fanout.core.state import RunRecord
    from fanout.stores import RedisStore
    from workers.context.worker_context import WorkerContext

__all__ = [
    "TooEarlyError",
    "branches",
    "ended_branches",
    "goes_on",
    "item_of",
    "outcomes_at",
    "reduce_branches",
    "shard_branches",
    "tally_of",
]


class TooEarlyError(Exception):
    """A callback ran before its whole header ended: it is a stale copy, or a message was lost.

    The task then does nothing. The real callback is still to come, or the reaper repairs the shard.
    """


def branches(context: WorkerContext, stage_id: StageId) -> Iterator[tuple[Chunk, Outcome]]:
    """Yield chunk and outcome of each branch of the map, in input order."""
    spec = context.runs.specs.get(stage_id.run_id)
    shards = range(context.connections.store.stage(stage_id).shards)
    return _branches(context, stage_id, shards, spec.branches_per_chunk)


def reduce_branches(
    context: WorkerContext, stage_id: StageId, reduce: Reduce
) -> Iterator[tuple[Chunk, Outcome]]:
    """Yield chunk and outcome of each branch of a reduce in one of its stages, in order."""
    shards = context.connections.store.shards_of(stage_id, reduce=reduce.name)
    return _branches(context, stage_id, shards, 1)


def _branches(
    context: WorkerContext, stage_id: StageId, shards: Iterable[int], per_chunk: int
) -> Iterator[tuple[Chunk, Outcome]]:
    for shard_id in map(stage_id.shard, shards):
        yield from shard_branches(context, shard_id, per_chunk)


def shard_branches(
    context: WorkerContext, shard_id: ShardId, per_chunk: int = 1
) -> Iterator[tuple[Chunk, Outcome]]:
    """Yield chunk and outcome of each branch of a shard, in order."""
    store = context.connections.store
    shard = store.shard(shard_id)
    for _, outcome in sorted(store.outcomes(shard_id).items()):
        yield shard_chunk(shard, outcome.index, per_chunk), outcome


def outcomes_at(store: RedisStore, shard_id: ShardId, positions: Sequence[int]) -> list[Outcome]:
    """Return the outcomes at some positions of a shard that was seen to have ended.

    Raises:
        UnknownRunError: The run was deleted since.
        TooEarlyError: A retry has reset the shard since.
    """
    outcomes = store.outcomes(shard_id)
    if not outcomes.keys() >= set(positions):
        store.run(shard_id.run_id)
        raise TooEarlyError(shard_id)
    return [outcomes[position] for position in positions]


def ended_branches(
    context: WorkerContext, shard_id: ShardId, *, start: int = 0, is_complete: bool = False
) -> list[tuple[int, Chunk, Outcome]] | None:
    """Return position, chunk and outcome of the branches of a shard; None if it has not ended.

    Args:
        context: The worker's process.
        shard_id: The shard.
        start: The first position.
        is_complete: Whether all branches of the stage are known to have outcomes: a shard may then lack
            only its callback.
    """
    store = context.connections.store
    if not is_complete and not store.is_finished(shard_id):
        return None
    spec = context.runs.specs.get(shard_id.run_id)
    per_chunk = spec.branches_per_chunk if shard_id.stage == 0 else 1
    shard = store.shard(shard_id)
    return [
        (position, shard_chunk(shard, outcome.index, per_chunk), outcome)
        for position, outcome in sorted(store.outcomes(shard_id).items())
        if position >= start
    ]


def item_of(spec: RunSpec, reduce: Reduce, chunk: Chunk, outcome: Outcome) -> Item:
    """Return a branch of the map as the input of an aggregator."""
    has_models = len(spec.models) > 1 or bool(spec.fallback)
    ref = spec.variants.ref(outcome.index)
    steps = answers_of(outcome.steps) if goes_by_steps(spec, reduce) else None
    return Item(
        index=outcome.index,
        document=chunk.document,
        aspect=ref.aspect,
        model=(outcome.model or ref.model) if has_models else None,
        asked_model=ref.model if spec.fallback else None,
        sample=ref.sample if spec.variants.samples > 1 else None,
        group=branch_group(spec, reduce, chunk, outcome.index, steps),
        output=outcome.output,
        votes=outcome.votes,
        columns=chunk.columns,
        steps=steps or {},
    )


def tally_of(spec: RunSpec, chunk: Chunk, outcome: Outcome) -> Tally:
    """Return a branch of the map as what is counted of it."""
    return Tally.of(
        document=chunk.document_index,
        chunk=outcome.index // spec.branches_per_chunk,
        kind=outcome.kind,
        is_cut=outcome.is_cut,
    )


def goes_on(context: WorkerContext, run: RunRecord) -> bool:
    """Return whether a run has not ended, been stopped or been opened again since its record was read."""
    now = context.connections.store.run(run.run_id)
    return now.reopened_at == run.reopened_at and not now.has_ended and now.halt is None
