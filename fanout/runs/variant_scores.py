"""The counts of the answers of one model to one prompt against labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fanout.core.latency import Latency, bucket_of
from fanout.core.usage import total_usage
from fanout.policy.calibration import ReliabilityCounter
from fanout.policy.confusion import ConfusionCounter
from fanout.policy.metrics import share_estimate

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fanout.core.records import Usage
    from fanout.policy.confusion import Term
    from fanout.runs.branch_output import Output

__all__ = ["VariantCounter"]


class _Spent:
    """The sum of the tokens of branches, which is unknown if it is so for one with an answer."""

    def __init__(self) -> None:
        self._sum: float | None = 0.0

    def add(self, value: float | None, *, is_answered: bool) -> None:
        if self._sum is None:
            return
        if value is not None:
            self._sum += value
        elif is_answered:
            # What a failed call has used is rarely known: it must not make the sum unknown.
            self._sum = None

    def by(self, count: int) -> float | None:
        return self._sum / count if self._sum is not None and count else None


class _Cost:
    """The sum of the costs of branches, which is unknown if one of them is."""

    def __init__(self) -> None:
        self.known_usd: float = 0.0
        # Of no branches nothing is known.
        self.is_known: bool | None = None

    def add(self, usage: Usage) -> None:
        if not usage.calls and usage.cost_usd is None:
            # A branch that made no call cost nothing.
            return
        self.known_usd += usage.known("cost_usd")
        self.is_known = self.is_known is not False and usage.cost_usd is not None

    def figures(self, correct: int) -> dict[str, float | None]:
        sum_usd = self.known_usd if self.is_known else None
        return {
            "cost_usd": sum_usd,
            "cost_at_least_usd": None if self.is_known else self.known_usd or None,
            "cost_per_correct_usd": sum_usd / correct if sum_usd is not None and correct else None,
        }


class VariantCounter:
    """Counts answers to documents with a label.

    Args:
        choices: The labels that have a row in any case.
    """

    def __init__(self, choices: Iterable[Term]) -> None:
        self.documents = 0
        self._count = self._answered = self._correct = self._calls = 0
        self._cached = self._untimed = 0
        self._confusion = ConfusionCounter(choices)
        self._reliability = ReliabilityCounter()
        self._tokens, self._cost = _Spent(), _Cost()
        self._buckets: dict[int, int] = {}
        self._elapsed_s = 0.0

    def add(self, label: Term, answer: Term | None, branch: Output) -> bool:
        """Count a branch, whose answer is None if it failed; return whether it is right."""
        is_right = answer is not None and answer.key == label.key
        self._count += 1
        self._answered += answer is not None
        self._correct += is_right
        self._confusion.add(label, answer)
        confidence = _confidence(branch)
        if answer is not None and confidence is not None:
            self._reliability.add(confidence, is_right=is_right)
        self._add_usage(branch, is_answered=answer is not None)
        return is_right

    def _add_usage(self, branch: Output, *, is_answered: bool) -> None:
        # An answer from the cache counts as what it took when it was made: a model is no cheaper for it.
        usage = total_usage([branch.usage, branch.saved]) if branch.cached else branch.usage
        self._cached += branch.cached
        known = usage.input_tokens is not None and usage.output_tokens is not None
        tokens = (usage.input_tokens or 0) + (usage.output_tokens or 0) if known else None
        self._tokens.add(tokens, is_answered=is_answered)
        self._cost.add(usage)
        self._calls += branch.usage.calls
        if branch.has_latency:
            bucket = bucket_of(branch.elapsed_s)
            self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
            self._elapsed_s += branch.elapsed_s
        else:
            self._untimed += branch.cached

    @property
    def cached(self) -> int:
        """The branches with an answer from the cache."""
        return self._cached

    @property
    def has_too_many_labels(self) -> bool:
        """Whether there are too many labels for classes."""
        return self._confusion.is_unbounded

    def figures(self) -> dict[str, Any]:
        """Return the figures of a VariantEvaluation that are counted."""
        latency = Latency(counts=self._buckets, sum_s=self._elapsed_s)
        return {
            "documents": self.documents,
            "count": self._count,
            "answered": self._answered,
            "correct": self._correct,
            "usable": self._answered / self._count if self._count else None,
            "accuracy": share_estimate(self._correct, self._count, units=self.documents),
            "accuracy_answered": share_estimate(
                self._correct, self._answered, units=self.documents
            ),
            "macro_f1": self._confusion.macro_f1(units=self.documents),
            "classes": self._confusion.scores(),
            "confusion": self._confusion.confusion(),
            "calibration": self._reliability.result(),
            "cached": self._cached,
            "calls": self._calls / self._count if self._count else None,
            "tokens_per_correct": self._tokens.by(self._correct),
            **self._cost.figures(self._correct),
            "latency_mean_s": latency.mean_s,
            "latency_p50_s": latency.percentile_s(0.5),
            "latency_per_correct_s": self._latency_per_correct_s(latency),
        }

    def _latency_per_correct_s(self, latency: Latency) -> float | None:
        """Return the durations by right answer; what was cached takes the mean time without the cache."""
        if latency.mean_s is None or not self._correct:
            return None
        return (self._elapsed_s + self._untimed * latency.mean_s) / self._correct


def _confidence(branch: Output) -> float | None:
    """Return the model's own confidence, or the share of the votes for the answer."""
    return branch.share if branch.confidence is None else branch.confidence
