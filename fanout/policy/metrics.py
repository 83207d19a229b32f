"""Measures of answers against labels, with intervals; pure functions of counts.

An interval is one of 95 %. A value without a definition, such as a share of nothing, is None.
"""

from __future__ import annotations

from math import exp, lgamma, log, sqrt
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "ClassCounts",
    "ClassScore",
    "Estimate",
    "class_score",
    "holm",
    "macro_f1",
    "share_estimate",
    "sign_test",
    "wilson_interval",
]

# The 97.5th percentile of the standard normal distribution.
_Z = 1.959963984540054
# Further terms of a sum do not change it.
_NEGLIGIBLE = 1e-17


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A measured value, 0 to 1, and its 95 % interval from ``low`` to ``high``."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


class ClassCounts(msgspec.Struct, kw_only=True):
    """The counts of one class.

    Attributes:
        support: Answers to documents that have this label, failed ones included.
        predicted: Answers that are this class, right or wrong.
        correct: Answers that are this class to documents that have this label.
    """

    support: int = 0
    predicted: int = 0
    correct: int = 0


class ClassScore(msgspec.Struct, frozen=True, kw_only=True):
    """The scores of one class; what has no definition is None.

    Attributes:
        label: The class.
        support: Answers to documents that have this label, failed ones included.
        predicted: Answers that are this class, right or wrong.
        correct: Answers that are this class to documents that have this label.
        precision: ``correct / predicted``.
        recall: ``correct / support``.
        f1: ``2 correct / (support + predicted)``, the harmonic mean of both.
    """

    label: str
    support: int
    predicted: int
    correct: int
    precision: float | None
    recall: float | None
    f1: float | None


def wilson_interval(successes: float, trials: float) -> tuple[float, float] | None:
    """Return the 95 % score interval of a share; None without trials.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22
    (1927): it stays within 0 to 1, and has a width also where all trials succeed or none does.

    Args:
        successes: How many trials succeeded; they need not be whole numbers.
        trials: How many there were.
    """
    if trials <= 0:
        return None
    share, square = successes / trials, _Z * _Z
    centre = (share + square / (2 * trials)) / (1 + square / trials)
    spread = sqrt(share * (1 - share) / trials + square / (4 * trials * trials))
    half = _Z * spread / (1 + square / trials)
    # Rounding must not exclude the value itself.
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))


def share_estimate(part: int, whole: int, *, units: int | None = None) -> Estimate | None:
    """Return a share with its Wilson interval; None of nothing.

    Args:
        part: How many of the whole count.
        whole: How many there are.
        units: How many of them are independent, if fewer: documents, where each has several answers.
    """
    if not whole:
        return None
    trials = min(whole, units or whole)
    low, high = wilson_interval(trials * part / whole, trials) or (0.0, 1.0)
    return Estimate(value=part / whole, low=low, high=high)


def class_score(label: str, counts: ClassCounts) -> ClassScore:
    """Return the scores of a class."""
    both = counts.support + counts.predicted
    return ClassScore(
        label=label,
        support=counts.support,
        predicted=counts.predicted,
        correct=counts.correct,
        precision=counts.correct / counts.predicted if counts.predicted else None,
        recall=counts.correct / counts.support if counts.support else None,
        f1=2 * counts.correct / both if both else None,
    )


def macro_f1(
    classes: Mapping[str, ClassCounts],
    cells: Mapping[tuple[str, str | None], int],
    *,
    units: int | None = None,
) -> Estimate | None:
    """Return the mean F1 of the classes that occur as labels; None if there is none.

    The variance is that of the delta method (K. Takahashi et al., "Confidence interval for
    micro-averaged F1 and macro-averaged F1 scores", Applied Intelligence 52, 2022). The interval is
    Wilson's with the sample size that gives this variance, at most the real one: unlike the normal
    one, it has a width where all answers are right, and stays within 0 to 1.

    Args:
        classes: The counts of each class. Those without support are no part of the mean: an answer
            that is no label counts against the recall of the label only.
        cells: How often each label had each answer; None is a failed one.
        units: How many answers are independent, if not all.
    """
    score = {
        key: (2 * one.correct / (one.support + one.predicted), one.support + one.predicted)
        for key, one in classes.items()
        if one.support
    }
    total = sum(cells.values())
    if not score or not total:
        return None
    value = sum(f1 for f1, _ in score.values()) / len(score)
    trials = min(total, units or total)
    variance = _variance(score, cells, total) * total / trials
    sized = value * (1 - value) / variance if variance > 0 else trials
    low, high = wilson_interval(value * min(sized, trials), min(sized, trials)) or (0.0, 1.0)
    return Estimate(value=value, low=low, high=high)


def _variance(
    score: Mapping[str, tuple[float, int]],
    cells: Mapping[tuple[str, str | None], int],
    total: int,
) -> float:
    """Return the variance of a mean F1 whose cells are multinomial.

    With ``F = 2a/b``, for the share ``a`` of a class on the diagonal and the sum ``b`` of its row and
    its column, the slope of F is ``2(1-F)/b`` on the diagonal, and ``-F/b`` elsewhere in both.
    """
    first = second = 0.0
    for (label, answer), count in cells.items():
        if label == answer:
            f1, both = score[label]
            slope = 2 * (1 - f1) / both
        else:
            hit = (score[key] for key in (label, answer) if key is not None and key in score)
            slope = -sum(f1 / both for f1, both in hit)
        # The slopes are of shares, and ``both`` is a count.
        slope *= total / len(score)
        first += count / total * slope
        second += count / total * slope * slope
    return max(0.0, second - first * first) / total


def sign_test(better: int, worse: int) -> float:
    """Return the two-sided p-value of the exact sign test: 1 if there is no difference at all.

    For answers that are right or wrong it is McNemar's test in its exact form (Q. McNemar, "Note on
    the sampling error of the difference between correlated proportions", Psychometrika 12, 1947).

    Args:
        better: Documents on which the first did better than the second.
        worse: Documents on which it did worse; those without a difference do not count.
    """
    trials, least = better + worse, min(better, worse)
    if not trials:
        return 1.0
    # From the largest term of the tail down, in logarithms: 2**-trials may be no float.
    term = exp(
        lgamma(trials + 1) - lgamma(least + 1) - lgamma(trials - least + 1) - trials * log(2)
    )
    tail = 0.0
    for successes in range(least, -1, -1):
        tail += term
        if term <= tail * _NEGLIGIBLE:
            break
        term *= successes / (trials - successes + 1)
    return min(1.0, 2 * tail)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values that are corrected for the number of comparisons.

    S. Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Stat. 6 (1979).
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, highest = [0.0] * len(p_values), 0.0
    for place, at in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[at]))
        corrected[at] = highest
    return corrected
