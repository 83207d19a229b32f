"""The sources of an aggregate: those that it cites, and whether its quotes stand in them."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any

from fanout.aggregators import sources_of
from fanout.core.citations import quotes, strings_in
from fanout.core.ids import StageId
from fanout.inputs.cited_answers import with_found_quotes
from fanout.policy.packing import shard_chunk

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fanout.aggregators import Place, Source
    from fanout.core.spec import RunSpec
    from workers.context.worker_context import WorkerContext

__all__ = ["with_checked_sources"]


def with_checked_sources(
    context: WorkerContext,
    run_id: str,
    spec: RunSpec,
    value: Any,
    places: Mapping[str, Place],
    *,
    is_deep: bool,
) -> tuple[Any, list[Source]]:
    """Return an aggregate with marks at quotes that do not stand in their sources, and its sources.

    Args:
        context: The worker's process.
        run_id: The run.
        spec: Its job.
        value: The answer of a node.
        places: Where the sources are from that the node shows, by id.
        is_deep: Whether the node shows partial results: its call could not see the sources themselves.
    """
    if is_deep:
        texts = _quoted(context, run_id, spec, value, places)
        value = with_found_quotes(value, texts) if texts else value
    return value, sources_of(value, places)


def _quoted(
    context: WorkerContext, run_id: str, spec: RunSpec, value: Any, places: Mapping[str, Place]
) -> dict[str, list[str]]:
    """Return the texts of the sources that quotes are from, by id."""
    wanted = {
        one for text in strings_in(value) for quote in quotes(text) for one in quote.ids
    } & places.keys()
    return {one: _texts(context, run_id, spec, places[one].index) for one in sorted(wanted)}


def _texts(context: WorkerContext, run_id: str, spec: RunSpec, index: int) -> list[str]:
    """Return the answer of a branch, and the text of its chunk."""
    store, map_id = context.connections.store, StageId(run_id, 0)
    shards = range(store.stage(map_id).shards)
    at = bisect_right(
        shards, index, key=lambda number: context.runs.indices.get(map_id.shard(number))[0]
    )
    shard_id = map_id.shard(at - 1)
    shard = store.shard(shard_id)
    outcome = store.outcomes(shard_id).get(index - shard.first)
    answer = None if outcome is None else outcome.output
    return [answer or "", shard_chunk(shard, index, spec.branches_per_chunk).text]
