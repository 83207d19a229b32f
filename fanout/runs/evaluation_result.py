"""The evaluation of a run as a record: the variants that were asked, and how they compare."""

from __future__ import annotations

from typing import Any

import msgspec

from fanout.core.units import dollars
from fanout.policy.calibration import Calibration  # noqa: TC001 - msgspec reads the annotation
from fanout.policy.confusion import Confusion  # noqa: TC001 - the same
from fanout.policy.metrics import ClassScore, Estimate  # noqa: TC001 - the same

__all__ = ["Comparison", "Evaluation", "VariantEvaluation"]


class VariantEvaluation(msgspec.Struct, frozen=True, kw_only=True):
    """The answers of one model to one prompt against labels; a failed branch is a wrong answer.

    Attributes:
        model: The model that is asked first; None if a branch decides that itself.
        aspect: The name of the prompt; None if the run has a single one.
        field: The field of the answer; None is the whole answer.
        documents: Documents with a label of which a branch has ended.
        count: Their branches that have ended: a document has several with ``samples`` or chunks.
        answered: Branches that have an answer.
        correct: Answers that are the label.
        usable: ``answered / count``.
        accuracy: ``correct / count``.
        accuracy_answered: ``correct / answered``.
        macro_f1: The mean F1 of the labels; None if there are more than 1,000.
        classes: The scores of the labels, at most 50.
        confusion: Which answers the labels got.
        calibration: How far the confidences can be believed; None if answers have none.
        calls: Mean calls of a branch.
        cached: Branches with an answer from the cache, which made no call for it now. Tokens and costs count
            what it had used when it was made, and the durations leave out branches without a call.
        tokens_per_correct: Tokens of prompts and answers for each correct answer.
        cost_usd: The cost of these branches, failed ones included; None if one of them is unknown.
        cost_at_least_usd: The known part of an unknown cost; None if nothing of it is known.
        cost_per_correct_usd: The cost for each correct answer.
        latency_mean_s: The mean duration of a branch that made a call, waits included.
        latency_p50_s: The median duration, from a histogram.
        latency_per_correct_s: The sum of the durations for each correct answer; one that made no call, as
            its answer was cached, counts with the mean.
    """

    model: str | None
    aspect: str | None
    field: str | None
    documents: int
    count: int
    answered: int
    correct: int
    usable: float | None
    accuracy: Estimate | None
    accuracy_answered: Estimate | None
    macro_f1: Estimate | None
    classes: list[ClassScore]
    confusion: Confusion | None
    calibration: Calibration | None
    calls: float | None
    cached: int
    tokens_per_correct: float | None
    cost_usd: float | None
    cost_at_least_usd: float | None
    cost_per_correct_usd: float | None
    latency_mean_s: float | None
    latency_p50_s: float | None
    latency_per_correct_s: float | None

    @property
    def shown_cost_per_correct(self) -> str | None:
        """The cost for each correct answer in words, or what is known of it; None if nothing is."""
        if self.cost_per_correct_usd is not None:
            return dollars(self.cost_per_correct_usd)
        if self.cost_at_least_usd is None or not self.correct:
            return None
        return f"at least {dollars(self.cost_at_least_usd / self.correct)}"


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two variants on the same documents.

    Attributes:
        first: The position of a variant in ``Evaluation.variants``.
        second: That of another one.
        first_better: Documents on which the first has the larger share of right answers.
        second_better: Documents on which the second has.
        p_value: Two-sided, of the exact sign test (McNemar's, if documents have one answer each).
        p_corrected: Corrected for the number of comparisons by Holm's method.
    """

    first: int
    second: int
    first_better: int
    second_better: int
    p_value: float
    p_corrected: float


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """The answers of a run against labels.

    Attributes:
        labels: The column of the label by field; the whole answer is the empty string.
        documents: Documents with a label of which a branch has ended.
        unlabelled: Documents without one, which are not evaluated.
        variants: By field, then by prompt and model in the order of the job.
        comparisons: Each two variants of a field; the most certain differences first.
        notes: What a reader should know, such as labels that are no choices.
    """

    labels: dict[str, str]
    documents: int
    unlabelled: int
    variants: list[VariantEvaluation]
    comparisons: list[Comparison]
    notes: list[str]

    @property
    def names(self) -> list[str]:
        """What tells the variants apart: prompt, model and field, as far as there are several."""
        rows = [(one.aspect, one.model, one.field) for one in self.variants]
        varies = [len({row[at] for row in rows}) > 1 for at in range(3)]
        return [
            " · ".join(part or "" for part, does in zip(row, varies, strict=True) if does)
            for row in rows
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        built: dict[str, Any] = msgspec.to_builtins(self)
        return built
