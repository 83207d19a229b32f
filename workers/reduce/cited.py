"""The sources of an aggregate: those that it cites, and whether its quotes stand in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from fanout.aggregators import sources_of
from fanout.core.citations import LOST_QUOTE, UNKNOWN, strings_in
from fanout.core.units import plural
from fanout.inputs.cited_answers import quoted_ids, with_found_quotes
from workers.context.branch_texts import texts_of_branch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fanout.aggregators import Place, Source
    from fanout.core.spec import RunSpec
    from workers.context.worker_context import WorkerContext

__all__ = ["Checked", "checked_sources"]


class Checked(NamedTuple):
    """An aggregate with marks at what is not real, the sources that it cites, and notes on both."""

    value: Any
    sources: list[Source]
    notes: list[str]


def checked_sources(
    context: WorkerContext,
    run_id: str,
    spec: RunSpec,
    value: Any,
    places: Mapping[str, Place],
    *,
    is_deep: bool,
) -> Checked:
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
    sources = sources_of(value, places)
    return Checked(value, sources, _notes(value, sources))


def _notes(value: Any, sources: list[Source]) -> list[str]:
    """Return what is wrong with an aggregate, as few read all of it."""
    texts = list(strings_in(value))
    lost, unknown = (sum(text.count(mark) for text in texts) for mark in (LOST_QUOTE, UNKNOWN))
    marked = [
        *([f"{plural(lost, 'quote', 'quotes')} not found"] if lost else []),
        *([plural(unknown, "unknown source", "unknown sources")] if unknown else []),
    ]
    notes = [f"marked in the answer: {', '.join(marked)}"] if marked else []
    return notes if sources else [*notes, "the answer cites no source"]


def _quoted(
    context: WorkerContext, run_id: str, spec: RunSpec, value: Any, places: Mapping[str, Place]
) -> dict[str, list[str]]:
    """Return the texts of the sources that quotes are from, by id."""
    wanted = quoted_ids(value) & places.keys()
    return {
        one: texts_of_branch(context, run_id, spec, places[one].index) for one in sorted(wanted)
    }
