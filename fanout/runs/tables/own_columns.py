"""The columns that a table of a run has beside those of the input and of answers, and their cells."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from fanout.core.records import total_saved, total_usage
from fanout.core.usage import rounded_usd
from fanout.runs.rows import free_name
from fanout.runs.tables.columns import ColumnType

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence

    from fanout.core.cells import Cell
    from fanout.runs.branch_output import Output
    from fanout.runs.rows import RowLayout

__all__ = [
    "CHUNK",
    "CONFIDENCE",
    "ERROR",
    "FIGURES",
    "OUTPUT",
    "OWN_COLUMNS",
    "PASSAGES",
    "VARIANT",
    "VOTES",
    "chunk_cells",
    "error_columns",
    "field_name",
    "figure_cells",
    "mark_cell",
    "marks_of",
    "own_names",
    "parts_of",
    "variant_labels",
]

_TEXT, _INTEGER, _FLOAT = ColumnType.TEXT, ColumnType.INTEGER, ColumnType.FLOAT
_BOOLEAN = ColumnType.BOOLEAN
OUTPUT = "output"
# What is before the field of an answer that has the name of another column of fanout's.
_FIELD = "output."
ERROR = {"error_kind": _TEXT, "error": _TEXT}
CHUNK = {"document": _TEXT, "pages": _TEXT, "headings": _TEXT, "chunk": _INTEGER}
FIGURES = {
    "attempts": _INTEGER, "input_tokens": _INTEGER, "output_tokens": _INTEGER, "cost_usd": _FLOAT,
    "cached": _BOOLEAN, "saved_usd": _FLOAT,
}  # fmt: skip
VARIANT = {"aspect": _TEXT, "model": _TEXT, "asked_model": _TEXT, "sample": _INTEGER}
VOTES = {"share": _FLOAT, "samples": _INTEGER}
# Of each chunk, in runs whose documents a model splits, or whose prompts have passages.
_TITLE, _SUBTASK, PASSAGES = "title", "subtask", "passages"
# Of each answer, in runs that may have them.
CONFIDENCE, _FINISH, _LANE = "confidence", "finish_reason", "lane"
_REJECTED, _BEST, _RANK = "rejected", "is_best", "rank"
OWN_COLUMNS = (OUTPUT, *ERROR, *CHUNK, *FIGURES, *VARIANT)


def parts_of(layout: RowLayout) -> dict[str, ColumnType]:
    """Return the columns of what a model called the parts, and of the passages."""
    there = {
        _TITLE: layout.has_titles, _SUBTASK: layout.has_subtasks, PASSAGES: layout.has_passages
    }  # fmt: skip
    return {name: _TEXT for name, is_there in there.items() if is_there}


@lru_cache(maxsize=8)
def own_names(layout: RowLayout) -> frozenset[str]:
    """Return the names that fields of answers do not have."""
    return frozenset({*OWN_COLUMNS, *parts_of(layout), *marks_of(layout)})


def variant_labels(layout: RowLayout) -> Iterator[str]:
    """Yield what the column of each branch of a chunk is called: ``ASPECT.MODEL.SAMPLE``.

    Only what there are several of is in a name; a single prompt is called ``output``.
    """
    models = layout.models if len(layout.models) > 1 else ("",)
    own = own_names(layout)
    for aspect in layout.aspects or (OUTPUT,):
        name = _FIELD + aspect if aspect in own and layout.aspects else aspect
        for model in models:
            for sample in range(layout.samples):
                yield ".".join(
                    [name, *filter(None, [model]), *[str(sample)] * (layout.samples > 1)]
                )


def marks_of(layout: RowLayout) -> dict[str, ColumnType]:
    """Return what stands beside each answer: how sure it is, how it ended, was bought and judged."""
    marks = {
        CONFIDENCE: (_FLOAT, layout.has_confidence),
        _FINISH: (_TEXT, layout.keeps_cut),
        _LANE: (_TEXT, layout.has_lane),
        _REJECTED: (_BOOLEAN, layout.has_judge),
        _BEST: (_BOOLEAN, layout.has_best),
        _RANK: (_INTEGER, layout.has_rank),
    }
    return {name: type_ for name, (type_, is_there) in marks.items() if is_there}


def mark_cell(branch: Output[Any], name: str) -> Cell:
    """Return the cell of a branch in one of the columns of ``marks_of``."""
    return branch.is_rejected if name == _REJECTED else getattr(branch, name)


def error_columns(label: str) -> dict[str, ColumnType]:
    """Return the columns of the error of a variant."""
    return {f"{label}.{name}": type_ for name, type_ in ERROR.items()}


def field_name(name: str, prefix: str, own: Container[str]) -> str:
    """Return the column of a field of answers: not one of fanout's own."""
    return prefix + free_name(name, own, _FIELD)


def chunk_cells(branch: Output[Any]) -> dict[str, Cell]:
    """Return where the text of a branch is from."""
    pages = branch.pages
    shown = f"{pages[0]}-{pages[-1]}" if len(pages) > 1 else str(pages[0]) if pages else None
    return {
        "document": branch.document,
        "pages": shown,
        "headings": branch.headings or None,
        "chunk": branch.chunk,
    }


def figure_cells(branches: Sequence[Output[Any]]) -> dict[str, Cell]:
    """Return the figures of the branches of a row; it is cached if all its answers are."""
    usage = total_usage([branch.usage for branch in branches])
    saved = total_saved([branch.saved for branch in branches])
    return {
        "attempts": sum(branch.attempts for branch in branches),
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cost_usd": rounded_usd(usage.cost_usd),
        "cached": all(branch.cached for branch in branches),
        "saved_usd": rounded_usd(saved.cost_usd),
    }
