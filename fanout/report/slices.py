"""What ended when: a bounded number of equal slices of time, wider for longer runs."""

from __future__ import annotations

from math import isqrt

import msgspec

__all__ = ["Slice", "SliceFigures", "Slices"]

_FEWEST_SLICES, _MOST_SLICES = 12, 120
# Widths that a reader can count in; each divides the next, so that slices merge exactly.
_WIDTHS_MS = [
    *(100, 200, 1000, 2000, 10_000, 30_000, 60_000, 300_000, 600_000, 1_800_000),
    *(3_600_000, 10_800_000, 21_600_000, 86_400_000),
]
_DAYS = 10


class Slice(msgspec.Struct, kw_only=True):
    """What ended within one slice of time.

    Attributes:
        start_s: When it begins, in seconds from the submission.
        succeeded: Branches with an output.
        failed: Branches with an error.
        input_tokens: Tokens of their prompts, as far as known.
        output_tokens: Tokens of their answers, as far as known.
    """

    start_s: float = 0.0
    succeeded: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def take(self, other: Slice) -> None:
        """Add what another slice has."""
        self.succeeded += other.succeeded
        self.failed += other.failed
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens


class SliceFigures(msgspec.Struct, frozen=True, kw_only=True):
    """A run over time.

    Attributes:
        width_s: Seconds in a slice.
        slices: From the submission to the last branch, without a gap: more as there are more.
        undated: Branches whose end has no known time; they are in no slice.
    """

    width_s: float
    slices: list[Slice]
    undated: int


class Slices:
    """Counts branches by the time when they ended, in any order.

    Args:
        origin_s: When the run was submitted, in seconds since the epoch.
    """

    def __init__(self, origin_s: float) -> None:
        self._origin_s = origin_s
        self._widths_ms = [*_WIDTHS_MS]
        self._slices: dict[int, Slice] = {}
        self._first = self._last = 0
        self._undated = 0

    def add(self, ended_at: float, one: Slice) -> None:
        """Add what ended at a moment, in seconds since the epoch; 0 if the moment is unknown."""
        if not ended_at:
            self._undated += one.succeeded + one.failed
            return
        # By a slow clock of a worker, a branch may have ended before the run was submitted.
        number = int((ended_at - self._origin_s) * 1000 // self._widths_ms[0])
        while self._span(number) > _MOST_SLICES:
            number //= self._widen()
        self._first, self._last = min(self._first, number), max(self._last, number)
        self._slices.setdefault(number, Slice()).take(one)

    def _span(self, number: int) -> int:
        return max(self._last, number) - min(self._first, number) + 1

    def _widen(self) -> int:
        if len(self._widths_ms) == 1:
            self._widths_ms.append(self._widths_ms[0] * _DAYS)
        width_ms = self._widths_ms.pop(0)
        factor = self._widths_ms[0] // width_ms
        merged: dict[int, Slice] = {}
        for number, one in self._slices.items():
            merged.setdefault(number // factor, Slice()).take(one)
        self._slices = merged
        self._first, self._last = self._first // factor, self._last // factor
        return factor

    def figures(self) -> SliceFigures:
        """Return what was taken."""
        dated = sum(one.succeeded + one.failed for one in self._slices.values())
        while self._span(0) > min(max(isqrt(4 * dated), _FEWEST_SLICES), _MOST_SLICES):
            self._widen()
        width_s = self._widths_ms[0] / 1000
        numbers = range(self._first, self._last + 1) if self._slices else ()
        slices = [self._slices.get(number, Slice()) for number in numbers]
        for number, one in zip(numbers, slices, strict=True):
            one.start_s = round(number * width_s, 3)
        return SliceFigures(width_s=width_s, slices=slices, undated=self._undated)
