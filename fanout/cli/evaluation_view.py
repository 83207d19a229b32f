"""An evaluation as text: a table of the variants, their differences, and their classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from unicodedata import combining, east_asian_width

from fanout.core.units import duration, plain, plural, share
from fanout.system.terminal import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fanout.policy.calibration import Calibration
    from fanout.policy.confusion import Confusion
    from fanout.policy.metrics import Estimate
    from fanout.runs.evaluation_result import Evaluation, VariantEvaluation

__all__ = ["Threshold", "evaluation_lines", "evaluation_note", "shortfalls"]

_NAME_CELLS = 40
_SHOWN_CLASSES = 12
_SHOWN_COMPARISONS = 10
_SHOWN_MISTAKES = 5
_LABEL_CELLS = 20
_GAP = "  "


class Threshold(NamedTuple):
    """The least value of a metric, ``accuracy`` or ``macro_f1``, of each variant."""

    metric: str
    least: float


def shortfalls(evaluation: Evaluation, threshold: Threshold) -> Iterator[str]:
    """Yield each variant whose metric is below a threshold, or unknown."""
    words = threshold.metric.replace("macro_f1", "macro-F1")
    for name, one in zip(_names(evaluation), evaluation.variants, strict=True):
        found: Estimate | None = getattr(one, threshold.metric)
        of = f" of {name}" if name else ""
        if found is None:
            yield f"the {words}{of} is unknown, and not {threshold.least:g} or more"
        elif found.value < threshold.least:
            yield f"the {words}{of} is {found.value:.4g}, below {threshold.least:g}"


def evaluation_note(evaluation: Evaluation) -> Iterator[str]:
    """Yield the accuracy of each variant as a short line; of many, the best and the worst."""
    pairs = list(zip(_names(evaluation), evaluation.variants, strict=True))
    known = [(name, one) for name, one in pairs if one.accuracy is not None]
    if len(known) > _SHOWN_COMPARISONS:
        known.sort(key=lambda pair: -pair[1].correct / pair[1].count)
        known = [known[0], known[-1]]
    for name, one in known:
        of = f" of {name}" if name else ""
        right = f"{one.correct:,} of {plural(one.count, 'answer', 'answers')} right"
        yield f"accuracy{of}: {_estimate(one.accuracy)}, {right}"
    if not known:
        yield "accuracy: unknown, as no document with a label has an answer"


def evaluation_lines(evaluation: Evaluation) -> Iterator[str]:
    """Yield an evaluation as lines of text."""
    yield from _variants(evaluation)
    yield from _comparisons(evaluation)
    names = _names(evaluation)
    for name, one in zip(names, evaluation.variants, strict=True):
        lines = [*_classes(one), *_calibration(one.calibration)]
        if lines:
            yield ""
            yield from [name, *lines] if name else lines
    if evaluation.notes:
        yield ""
        yield from (f"note: {one_line(note)}" for note in evaluation.notes)


def _variants(evaluation: Evaluation) -> Iterator[str]:
    columns = {
        "PROMPT": [one.aspect or "" for one in evaluation.variants],
        "MODEL": [one.model or "several models" for one in evaluation.variants],
        "FIELD": [one.field or "" for one in evaluation.variants],
    }
    shown = [name for name, cells in columns.items() if len(set(cells)) > 1] or ["MODEL"]
    head = [*shown, "ANSWERS", "USABLE", "ACCURACY", "MACRO-F1", "TIME", "PER RIGHT ANSWER"]
    rows = [
        [*(columns[name][at] for name in shown), *_figures(one)]
        for at, one in enumerate(evaluation.variants)
    ]
    yield from _table(head, rows, texts=len(shown))


def _figures(one: VariantEvaluation) -> list[str]:
    spent = [
        None if one.tokens_per_correct is None else f"{one.tokens_per_correct:,.0f} tokens",
        one.shown_cost_per_correct,
        None if one.latency_per_correct_s is None else plain(duration(one.latency_per_correct_s)),
    ]
    return [
        f"{one.count:,}",
        plain(share(one.answered, one.count)),
        _estimate(one.accuracy),
        _estimate(one.macro_f1),
        "?" if one.latency_mean_s is None else plain(duration(one.latency_mean_s)),
        ", ".join(filter(None, spent)) or "?",
    ]


def _estimate(one: Estimate | None) -> str:
    return "?" if one is None else str(one)


def _names(evaluation: Evaluation) -> list[str]:
    return [_cut(name, 2 * _NAME_CELLS) for name in evaluation.names]


def _comparisons(evaluation: Evaluation) -> Iterator[str]:
    shown = evaluation.comparisons[:_SHOWN_COMPARISONS]
    names = _names(evaluation)
    if shown:
        yield ""
    for one in shown:
        better, worse, first, second = (
            one.first_better, one.second_better, names[one.first], names[one.second],
        )  # fmt: skip
        if better < worse:
            better, worse, first, second = worse, better, second, first
        corrected = "" if len(evaluation.comparisons) == 1 else f", corrected {one.p_corrected:.2g}"
        yield (
            f"{first} against {second}: better on {plural(better, 'document', 'documents')}, worse on "
            f"{worse:,} (p = {one.p_value:.2g}{corrected})"
        )
    if more := len(evaluation.comparisons) - len(shown):
        yield f"and {more:,} more comparisons: --json has all"


def _classes(one: VariantEvaluation) -> Iterator[str]:
    table = one.confusion
    if table is None:
        return
    if len(table.labels) + table.more_labels > _SHOWN_CLASSES:
        labels = len(table.labels) + table.more_labels
        yield f"{labels:,} labels: --json has their scores"
    else:
        rows = [
            [each.label, f"{each.support:,}", *map(_score, (each.precision, each.recall, each.f1))]
            for each in one.classes
        ]
        yield from _table(["LABEL", "SUPPORT", "PRECISION", "RECALL", "F1"], rows, texts=1)
        yield ""
        yield from _confusion(table)
    wrong = table.mistakes[:_SHOWN_MISTAKES]
    if wrong and (any(table.other) or len(table.labels) > _SHOWN_CLASSES):
        listed = (
            f"{_short(each.answer)} for {_short(each.label)} ({each.count:,})" for each in wrong
        )
        yield f"most frequent wrong answers: {', '.join(listed)}"


def _confusion(table: Confusion) -> Iterator[str]:
    extra = [("(other)", table.other), ("(failed)", table.failed)]
    extra = [(name, counts) for name, counts in extra if any(counts)]
    head = ["LABEL \\ ANSWER", *table.labels, *(name for name, _ in extra)]
    rows = [
        [label, *(f"{count:,}" for count in [*table.counts[at], *(each[at] for _, each in extra)])]
        for at, label in enumerate(table.labels)
    ]
    yield from _table(head, rows, texts=1)


def _calibration(found: Calibration | None) -> Iterator[str]:
    if found is None:
        return
    yield (
        f"confidence: mean {found.confidence:.3f}, accuracy {found.accuracy:.3f}, calibration error "
        f"{found.ece:.3f} ({plural(found.count, 'answer', 'answers')})"
    )
    rows = [
        [f"{one.low:.1f} to {one.high:.1f}", f"{one.count:,}", _score(one.confidence),
         _score(one.accuracy)]
        for one in found.bins if one.count
    ]  # fmt: skip
    yield from _table(["CONFIDENCE", "ANSWERS", "MEAN", "ACCURACY"], rows, texts=1)


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _short(text: str) -> str:
    line = " ".join(one_line(text).split())
    return _cut(line, _LABEL_CELLS)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int) -> Iterator[str]:
    """Yield aligned lines; the first columns are texts, and the others numbers."""
    cells = [
        [
            _cut(cell, _NAME_CELLS if at < texts else _LABEL_CELLS + 10)
            for at, cell in enumerate(row)
        ]
        for row in [head, *rows]
    ]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        shown = (
            cell + " " * (width - _width(cell))
            if at < texts
            else " " * (width - _width(cell)) + cell
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield _GAP.join(shown).rstrip()


def _cut(text: str, most: int) -> str:
    line = one_line(text).replace("\t", " ")
    if _width(line) <= most:
        return line
    # No character is wider than two.
    line = line[:most]
    while _width(line) >= most:
        line = line[:-1]
    return f"{line}…"


def _width(text: str) -> int:
    """Return about how many columns of a terminal a text takes; the library for it is slow to load."""
    if text.isascii():
        return len(text)
    wide = sum(east_asian_width(one) in {"W", "F"} for one in text)
    return len(text) + wide - sum(combining(one) > 0 for one in text)
