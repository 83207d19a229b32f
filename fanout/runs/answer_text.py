"""Aggregates as text: what a person reads on a terminal."""

from __future__ import annotations

import json
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from fanout.aggregators import Coverage, Source

__all__ = [
    "EMPTY_GROUP",
    "ROWS",
    "answer_text",
    "cell_words",
    "columns",
    "group_heading",
    "source_lines",
]

# What a group is called whose name is empty.
EMPTY_GROUP = "(empty)"

_CELL_CHARS = 60
# A float with more decimals than these is a mean or a share, or not exact in binary.
_EXACT_DECIMALS = 6
_PRECISION = 6
_CENTS = 2
# Reduces whose value is rows.
ROWS = ("pairwise", "rank", "resolve", "table", "top")


def answer_text(aggregated: Any, reduction: str = "none", *, is_whole: bool = False) -> str:
    """Return an aggregate as text.

    Text is unchanged, rows are columns of text, groups are under headings, and other values are JSON.

    Args:
        aggregated: The aggregate; by group if the run has groups.
        reduction: The reduce that made it.
        is_whole: Whether long cells of rows are whole, and not cut.
    """
    if isinstance(aggregated, str):
        return aggregated
    if reduction in ROWS and isinstance(aggregated, list):
        return _columns(aggregated, is_whole=is_whole)
    if reduction == "best" and isinstance(aggregated, dict):
        rows = [{"best of": name, **row} for name, row in aggregated.items()]
        return _columns(rows, is_whole=is_whole)
    is_grouped = isinstance(aggregated, dict) and aggregated
    if is_grouped and reduction in ROWS:
        # A text says why there are no rows.
        texts = {
            group: rows if isinstance(rows, str) else _columns(rows or [], is_whole=is_whole)
            for group, rows in aggregated.items()
        }
    elif is_grouped and all(isinstance(value, str) for value in aggregated.values()):
        texts = aggregated
    else:
        return json.dumps(aggregated, ensure_ascii=False, indent=2)
    return "\n\n".join(f"{group_heading(group)}{text}" for group, text in texts.items())


def group_heading(name: str) -> str:
    """Return the line above the text of a group, with the empty line below it."""
    return f"## {' '.join(name.split()) or EMPTY_GROUP}\n\n"


def columns(
    rows: Callable[[], Iterable[dict[str, Any]]], *, is_whole: bool = False
) -> Iterator[str]:
    """Yield rows as lines of columns below their names; numbers are aligned to the right.

    Args:
        rows: Returns the rows, which are read twice.
        is_whole: Whether a long cell is whole, and its line longer than the others; else it is cut.
    """
    shown = str if is_whole else _short
    widths: dict[str, int] = {}
    texts: set[str] = set()
    for row in rows():
        for name, value in row.items():
            width = _width(_short(cell_words(value)))
            widths[name] = max(widths.get(name) or _width(_short(name)), width)
            if value is not None and not _is_number(value):
                texts.add(name)
    if not widths:
        yield "(no rows)"
        return
    yield _line({name: shown(name) for name in widths}, widths, texts)
    for row in rows():
        cells = {name: shown(cell_words(row.get(name))) for name in widths}
        yield _line(cells, widths, texts)


def _line(cells: dict[str, str], widths: dict[str, int], texts: set[str]) -> str:
    padded = (
        _padded(cell, widths[name], is_number=name not in texts) for name, cell in cells.items()
    )
    return "  ".join(padded).rstrip()


def source_lines(
    sources: list[Source] | dict[str, Any] | None,
    coverage: Coverage | dict[str, Any] | None = None,
) -> Iterator[str]:
    """Yield the sources that an aggregate cites, one to a line, below a blank line and a heading.

    Args:
        sources: The sources; by group if the run has groups, and by reduce if it has a list of these; None
            if it was to cite none.
        coverage: What is behind the aggregates, in the same form: some may not exist.
    """
    if sources is None:
        return
    yield ""
    yield "Sources:"
    yield from _cited(sources, coverage, "  ")


def _cited(
    sources: list[Source] | dict[str, Any],
    coverage: Coverage | dict[str, Any] | None,
    indent: str,
) -> Iterator[str]:
    by_name = coverage if isinstance(coverage, dict) else {}
    if not isinstance(sources, dict):
        is_there = coverage is None or isinstance(coverage, dict) or coverage.problem is None
        yield from _listed(sources, indent, is_there=is_there)
        return
    for name, some in sources.items():
        yield f"{indent}{name or EMPTY_GROUP}"
        yield from _cited(some, by_name.get(name), f"{indent}  ")


def _listed(sources: Iterable[Source], indent: str, *, is_there: bool) -> Iterator[str]:
    is_empty = True
    for one in sources:
        is_empty = False
        often = f" ({one.count:,} times)" if one.count > 1 else ""
        yield f"{indent}[{one.id}] {one.words}{often}"
    if is_empty:
        yield f"{indent}({'it cites none' if is_there else 'no aggregate'})"


def _columns(rows: list[dict[str, Any]], *, is_whole: bool) -> str:
    return "\n".join(columns(lambda: rows, is_whole=is_whole))


def cell_words(value: Any) -> str:
    """Return a value of a row as a person reads it, in one line; null is empty.

    A float has all of up to six decimals; one with more has six digits, but at least cents.
    """
    if value is None:
        return ""
    if isinstance(value, float):
        return _float_words(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return " ".join(text.split())


def _float_words(value: float) -> str:
    exact = repr(value)
    whole, _, decimals = exact.lstrip("-").partition(".")
    if "e" not in exact and len(decimals) <= _EXACT_DECIMALS:
        return exact.removesuffix(".0")
    if "e" in exact or whole == "0":
        return format(value, f".{_PRECISION}g") if abs(value) < 1 else exact
    kept = max(_PRECISION - len(whole), _CENTS)
    return format(value, f".{kept}f").rstrip("0").removesuffix(".")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(text: str) -> str:
    return text if len(text) <= _CELL_CHARS else f"{text[: _CELL_CHARS - 1]}…"


def _padded(cell: str, width: int, *, is_number: bool) -> str:
    space = " " * (width - _width(cell))
    return f"{space}{cell}" if is_number else f"{cell}{space}"


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text)
