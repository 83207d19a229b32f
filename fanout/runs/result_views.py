"""A result for people: one line, and a part of a page for notebooks."""

from __future__ import annotations

import json
from collections import Counter
from html import escape
from itertools import islice
from typing import TYPE_CHECKING, Any

from fanout.core.units import cost_of, count_of, duration, plain, plural
from fanout.runs.answer_text import cell_words
from fanout.runs.one_line import one_line
from fanout.runs.savings import saved_parts
from fanout.runs.tables.own_columns import OWN_COLUMNS
from fanout.runs.tables.spool import MemorySpool
from fanout.runs.tables.table import gather

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fanout.core.records import Usage
    from fanout.runs.results import Result
    from fanout.runs.tables.table import Table

__all__ = ["result_line", "result_page"]

_SHOWN_ROWS = 10
_SHOWN_COLUMNS = 12
_SHOWN_ERRORS = 5
_SHOWN_GROUPS = 5
_CELL_CHARS = 200
_TEXT_CHARS = 2_000
_ERRORS = {"error_kind", "error"}
# What documents that are no rows have in place of columns.
_PLACE = ("document", "pages", "headings")
# Of fanout's own columns, a table of the first rows has only these.
_SHOWN = {"output", "aspect", "model", "asked_model", "sample", *_ERRORS}
_STYLE = 'style="text-align:left;vertical-align:top;white-space:pre-wrap;max-width:40em"'


def result_line(result: Result[Any]) -> str:
    """Return a result as one short line."""
    kinds = _kinds(result)
    shown = {
        "run_id": result.run_id,
        "status": result.status.value,
        "branches": len(result.branches),
        "failed": sum(kinds.values()),
        **({"kept_truncated": cut} if (cut := _cut_off(result)) else {}),
        **({"kept_rejected": rejected} if (rejected := _rejected(result)) else {}),
        **({"errors": kinds} if kinds else {}),
        "calls": result.usage.calls,
        "cost_usd": result.usage.cost_usd,
        **({"cached": result.saved.calls} if result.saved.calls else {}),
        "aggregated": result.aggregated,
        "error": result.error,
    }
    return one_line("Result", shown)


def _kinds(result: Result[Any]) -> dict[str, int]:
    kinds = Counter(branch.kind.value for branch in result.branches if branch.kind is not None)
    return dict(sorted(kinds.items()))


def _cut_off(result: Result[Any]) -> int:
    """Return how many answers were cut off, and kept."""
    return sum(branch.is_cut for branch in result.branches)


def _rejected(result: Result[Any]) -> int:
    """Return how many answers a judge did not pass, and that were kept."""
    return sum(bool(branch.is_rejected) and branch.kind is None for branch in result.branches)


def _facts(result: Result[Any]) -> list[str]:
    total, kinds = len(result.branches), _kinds(result)
    failed = sum(kinds.values())
    facts = [f"{total - failed:,} of {plural(total, 'branch', 'branches')}"]
    if failed:
        counts = ", ".join(f"{kind} {count:,}" for kind, count in kinds.items())
        facts.append(f"{failed:,} failed ({counts})")
    if cut := _cut_off(result):
        facts.append(f"{cut:,} cut off and kept")
    if rejected := _rejected(result):
        facts.append(f"{rejected:,} rejected by a judge and kept")
    usage = [*_usage(result.usage), *saved_parts(result.saved)]
    return [*facts, *usage, plain(duration(result.elapsed_s))]


def _usage(usage: Usage) -> Iterator[str]:
    """Yield calls, tokens and cost; what is unknown is left out."""
    yield plural(usage.calls, "call", "calls")
    if usage.known("input_tokens") or usage.input_tokens is not None:
        into, out = (count_of(usage, name) for name in ("input_tokens", "output_tokens"))
        yield f"{into} tokens in and {out} out"
    if usage.known("cost_usd") or usage.cost_usd is not None:
        yield cost_of(usage)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} chars)"


def result_page(result: Result[Any]) -> str:
    """Return a result as a part of an HTML page: bounded, and without other files or scripts."""
    is_ok = result.status.value == "succeeded"
    colour = "#188038" if is_ok else "#c5221f"
    status = f'<span style="color:{colour}">{escape(result.status.value)}</span>'
    facts = escape(" · ".join(_facts(result)))
    parts = [f"<div><p><b>Run {escape(result.run_id)} {status}</b>: {facts}</p>"]
    if result.error is not None:
        parts.append(f"<p>{_shown(result.error, _TEXT_CHARS)}</p>")
    value = result.aggregated_value
    if result.has_reduces and isinstance(value, dict):
        for name, one in value.items():
            parts.append(f"<p><b>Aggregate {escape(name)}</b></p>")
            parts += _aggregate(one)
    elif value is not None:
        parts.append("<p><b>Aggregate</b></p>")
        parts += _aggregate(value)
    parts += _rows(result)
    parts += _evaluation(result)
    parts += _failures(result)
    if result.notes:
        notes = "; ".join(result.notes[:_SHOWN_ERRORS])
        parts.append(f"<p>Notes: {_shown(notes, _TEXT_CHARS)}</p>")
    return "\n".join([*parts, "</div>"])


def _aggregate(value: Any) -> Iterator[str]:
    """Yield an aggregate: rows, also those of groups, as tables, and anything else as text."""
    if _is_rows(value):
        yield from _row_table(value)
    elif isinstance(value, dict) and value and all(map(_is_rows, value.values())):
        for group, rows in islice(value.items(), _SHOWN_GROUPS):
            yield f"<p>{_shown(group, _CELL_CHARS)}</p>"
            yield from _row_table(rows)
        if len(value) > _SHOWN_GROUPS:
            yield f"<p>and {len(value) - _SHOWN_GROUPS:,} more groups: <code>aggregated</code> has all</p>"
    else:
        yield _block(value)


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _row_table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the first rows of an aggregate as a table, and how many more there are."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    shown = names[:_SHOWN_COLUMNS]
    yield '<table class="dataframe"><thead>'
    yield _row("th", (_shown(name, _CELL_CHARS) for name in shown))
    yield "</thead><tbody>"
    for row in rows[:_SHOWN_ROWS]:
        cells = (row.get(name) for name in shown)
        yield _row(
            "td", (_cell(cell_words(one) if isinstance(one, float) else one) for one in cells)
        )
    yield "</tbody></table>"
    left = [
        f"{more:,} more {what}"
        for more, what in (
            (len(rows) - _SHOWN_ROWS, "rows"),
            (len(names) - _SHOWN_COLUMNS, "columns"),
        )
        if more > 0
    ]
    if left:
        yield f"<p>and {' and '.join(left)}: <code>aggregated</code> has all</p>"


def _block(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)
    return f'<pre style="white-space:pre-wrap">{_shown(text, _TEXT_CHARS)}</pre>'


def _shown(text: str, most: int) -> str:
    return escape(_cut(text, most))


def _rows(result: Result[Any]) -> Iterator[str]:
    """Yield a table of the first rows, and how many more there are."""
    if not result.branches:
        return
    table = gather(islice(result.branches, _SHOWN_ROWS), result.layout, MemorySpool())
    columns = _columns(table, has_errors=any(one.kind for one in result.branches[:_SHOWN_ROWS]))
    shown = columns[:_SHOWN_COLUMNS]
    yield '<table class="dataframe"><thead>'
    yield _row("th", (_shown(table.columns[at].name, _CELL_CHARS) for at in shown))
    yield "</thead><tbody>"
    for row in table.rows():
        yield _row("td", (_cell(row[at]) for at in shown))
    yield "</tbody></table>"
    more = len(result.branches) - table.count
    left = [f"{more:,} more rows"] if more else []
    if len(columns) > len(shown):
        left.append(f"{len(columns) - len(shown):,} more columns")
    if left:
        yield f"<p>and {' and '.join(left)}: <code>to_pandas()</code> has all</p>"


def _row(tag: str, cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{tag} {_STYLE}>{cell}</{tag}>' for cell in cells)}</tr>"


def _columns(table: Table, *, has_errors: bool) -> list[int]:
    """Return the positions of the columns to show: of the input, of the answers, and the errors."""
    wanted = _SHOWN if has_errors else _SHOWN - _ERRORS
    names = [column.name for column in table.columns]
    shown = [at for at, name in enumerate(names) if name not in OWN_COLUMNS or name in wanted]
    if names[0] not in OWN_COLUMNS:
        return shown
    rows = list(table.rows())
    place = [at for at in map(names.index, _PLACE) if any(row[at] is not None for row in rows)]
    return [*place, *shown]


def _cell(cell: Any) -> str:
    if cell is None:
        return '<span style="opacity:0.5">None</span>'
    text = cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False)
    return _shown(text, _CELL_CHARS)


def _evaluation(result: Result[Any]) -> Iterator[str]:
    """Yield the accuracy of the first variants, if the job has labels."""
    found = result.evaluation
    if found is None:
        return
    yield "<p><b>Accuracy</b>, with its 95% interval</p><ul>"
    for name, one in islice(zip(found.names, found.variants, strict=True), _SHOWN_ROWS):
        of = f"{_shown(name, _CELL_CHARS)}: " if name else ""
        accuracy = "unknown" if one.accuracy is None else str(one.accuracy)
        yield f"<li>{of}{accuracy}, {one.correct:,} of {plural(one.count, 'answer', 'answers')} right</li>"
    yield "</ul>"


def _failures(result: Result[Any]) -> Iterator[str]:
    """Yield the first failure of each kind, the most frequent kinds first."""
    kinds = Counter(one.kind for one in result.branches if one.kind is not None)
    if not kinds:
        return
    first = {one.kind: one for one in reversed(result.branches) if one.kind is not None}
    yield "<p><b>Failed</b></p><ul>"
    for kind, count in kinds.most_common(_SHOWN_ERRORS):
        one = first[kind]
        message = _shown(f"{one.document}: {one.message or ''}", _CELL_CHARS)
        yield f"<li>{escape(kind.value)} {count:,}, such as {message}</li>"
    yield "</ul>"
