"""The sources of an aggregate: those that it cites, and whether its quotes stand in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fanout.aggregators import sources_of
from fanout.inputs.cited_answers import quoted_ids, with_found_quotes
from workers.context.branch_texts import texts_of_branch

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
    wanted = quoted_ids(value) & places.keys()
    return {
        one: texts_of_branch(context, run_id, spec, places[one].index) for one in sorted(wanted)
    }
