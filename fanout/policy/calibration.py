"""How far confidences can be believed: their reliability by bin."""

from __future__ import annotations

import msgspec

__all__ = ["Calibration", "ReliabilityBin", "ReliabilityCounter"]

_BINS = 10


class ReliabilityBin(msgspec.Struct, frozen=True, kw_only=True):
    """The answers whose confidence is within one tenth.

    Attributes:
        low: The lowest confidence; ``high`` is the highest, which belongs to the next bin, but for 1.
        count: How many answers there are.
        confidence: Their mean confidence; None if there is none.
        accuracy: The share of right ones; None if there is none.
    """

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """How the confidences of answers compare with how often these are right.

    Attributes:
        count: Answers that have a confidence.
        confidence: Their mean confidence.
        accuracy: The share of right ones.
        ece: The expected calibration error, 0 to 1: the mean over all answers of the distance
            between confidence and accuracy of their bin (M. P. Naeini et al., AAAI 2015).
        brier: The mean squared distance between the confidence and 1 if the answer is right, else 0
            (G. W. Brier, Monthly Weather Review 78, 1950).
        bins: Ten, from 0 to 1.
    """

    count: int
    confidence: float
    accuracy: float
    ece: float
    brier: float
    bins: list[ReliabilityBin]


class ReliabilityCounter:
    """Counts answers by confidence."""

    def __init__(self) -> None:
        self._counts = [0] * _BINS
        self._right = [0] * _BINS
        self._sums = [0.0] * _BINS
        self._squares = 0.0

    def add(self, confidence: float, *, is_right: bool) -> None:
        """Count an answer with a confidence, 0 to 1."""
        confidence = min(1.0, max(0.0, confidence))
        at = min(int(confidence * _BINS), _BINS - 1)
        self._counts[at] += 1
        self._right[at] += is_right
        self._sums[at] += confidence
        self._squares += (confidence - is_right) ** 2

    def result(self) -> Calibration | None:
        """Return the calibration; None if no answer has a confidence."""
        total = sum(self._counts)
        if not total:
            return None
        gaps = (abs(sum_ - right) for sum_, right in zip(self._sums, self._right, strict=True))
        return Calibration(
            count=total,
            confidence=sum(self._sums) / total,
            accuracy=sum(self._right) / total,
            ece=sum(gaps) / total,
            brier=self._squares / total,
            bins=[self._bin(at) for at in range(_BINS)],
        )

    def _bin(self, at: int) -> ReliabilityBin:
        count = self._counts[at]
        return ReliabilityBin(
            low=at / _BINS,
            high=(at + 1) / _BINS,
            count=count,
            confidence=self._sums[at] / count if count else None,
            accuracy=self._right[at] / count if count else None,
        )
