"""The evaluation of a run, bounded to the size of a page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fanout.report.text import one_line

if TYPE_CHECKING:
    from fanout.policy.confusion import Confusion
    from fanout.policy.metrics import Estimate
    from fanout.runs.evaluation_result import Evaluation, VariantEvaluation

__all__ = ["ShownConfusion", "ShownEvaluation", "ShownVariant", "estimate", "shown_evaluation"]

_VARIANTS = 50
_DETAILED = 12
_COMPARISONS = 20
_CLASSES = 25
_MISTAKES = 10
_LABEL_CHARS = 60
_NAME_CHARS = 120


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownConfusion:
    """A confusion matrix as the page shows it.

    Attributes:
        columns: The labels as answers, then those for other answers and for none, if there are any.
        rows: Each label with its counts, and the sum of these.
        more: Labels that are not shown.
    """

    columns: list[str]
    rows: list[tuple[str, list[int], int]]
    more: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownVariant:
    """A variant as the page shows it; ``name`` is empty if there is one only."""

    name: str
    one: VariantEvaluation
    confusion: ShownConfusion | None
    mistakes: list[tuple[str, str, int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownEvaluation:
    """An evaluation as the page shows it.

    Attributes:
        variants: The first of them.
        comparisons: Sentences about two variants each, with p-values.
        more: Variants that are not shown.
    """

    evaluation: Evaluation
    variants: list[ShownVariant]
    detailed: list[ShownVariant]
    comparisons: list[str]
    more: int


def shown_evaluation(evaluation: Evaluation) -> ShownEvaluation:
    """Return an evaluation as the page shows it."""
    names = [one_line(name, _NAME_CHARS) for name in evaluation.names]
    variants = [
        ShownVariant(
            name=name,
            one=one,
            confusion=None if one.confusion is None else _confusion(one.confusion),
            mistakes=[] if one.confusion is None else _mistakes(one.confusion),
        )
        for name, one in zip(names[:_VARIANTS], evaluation.variants, strict=False)
    ]
    return ShownEvaluation(
        evaluation=evaluation,
        variants=variants,
        detailed=[one for one in variants if one.confusion or one.one.calibration][:_DETAILED],
        comparisons=list(_comparisons(evaluation, names)),
        more=len(evaluation.variants) - len(variants),
    )


def estimate(one: Estimate | None) -> str:
    """Return a measured value with its interval."""
    return "unknown" if one is None else str(one)


def _comparisons(evaluation: Evaluation, names: list[str]) -> list[str]:
    sentences = []
    is_only = len(evaluation.comparisons) == 1
    for one in evaluation.comparisons[:_COMPARISONS]:
        better, worse, first, second = (
            one.first_better, one.second_better, names[one.first], names[one.second],
        )  # fmt: skip
        if better < worse:
            better, worse, first, second = worse, better, second, first
        corrected = "" if is_only else f", corrected {one.p_corrected:.2g}"
        sentences.append(
            f"{first} against {second}: better on {better:,}, worse on {worse:,} "
            f"(p = {one.p_value:.2g}{corrected})"
        )
    return sentences


def _confusion(table: Confusion) -> ShownConfusion:
    size = min(len(table.labels), _CLASSES)
    extra = [("(other)", table.other), ("(failed)", table.failed)]
    beyond = [sum(row[size:]) for row in table.counts]
    if any(beyond):
        extra.insert(0, ("(labels below)", beyond))
    extra = [(name, counts) for name, counts in extra if any(counts)]
    labels = [one_line(label, _LABEL_CHARS) for label in table.labels[:size]]
    rows = []
    for at, label in enumerate(labels):
        counts = [*table.counts[at][:size], *(each[at] for _, each in extra)]
        rows.append((label, counts, sum(counts)))
    return ShownConfusion(
        columns=[*labels, *(name for name, _ in extra)],
        rows=rows,
        more=len(table.labels) - size + table.more_labels,
    )


def _mistakes(table: Confusion) -> list[tuple[str, str, int]]:
    return [
        (one_line(one.label, _LABEL_CHARS), one_line(one.answer, _LABEL_CHARS), one.count)
        for one in table.mistakes[:_MISTAKES]
    ]
