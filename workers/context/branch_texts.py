"""The texts of a branch of the map, in which quotes are looked for."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from fanout.core.ids import StageId
from fanout.policy.packing import shard_chunk

if TYPE_CHECKING:
    from fanout.core.spec import RunSpec
    from workers.context.worker_context import WorkerContext

__all__ = ["texts_of_branch"]


def texts_of_branch(context: WorkerContext, run_id: str, spec: RunSpec, index: int) -> list[str]:
    """Return the answer of a branch of the map, and the text of its chunk. Blocks on the store.

    Args:
        context: The worker's process.
        run_id: The run.
        spec: Its job.
        index: The index of the branch.

    Raises:
        UnknownRunError: There is no such run any more.
    """
    store, map_id = context.connections.store, StageId(run_id, 0)
    # Shards have consecutive indices.
    at = bisect_right(
        range(store.stage(map_id).shards),
        index,
        key=lambda number: context.runs.indices.get(map_id.shard(number))[0],
    )
    shard_id = map_id.shard(at - 1)
    shard = store.shard(shard_id)
    outcome = store.outcomes(shard_id).get(index - shard.first)
    answer = None if outcome is None else outcome.output
    return [answer or "", shard_chunk(shard, index, spec.branches_per_chunk).text]
