"""Branches over time, in a bounded number of equal time slices, which are wider for longer runs."""

from __future__ import annotations

from math import isqrt

import msgspec

__all__ = ["Slice", "SliceCounter", "SliceFigures"]

_FEWEST_SLICES, _MOST_SLICES = 12, 120
# Round widths for readers; each divides the next, so that slices merge exactly.
_WIDTHS_MS = [
    *(100, 200, 1000, 2000, 10_000, 30_000, 60_000, 300_000, 600_000, 1_800_000),
    *(3_600_000, 10_800_000, 21_600_000, 86_400_000),
]
_DAYS = 10


class Slice(msgspec.Struct, kw_only=True):
    """The branches that ended within one time slice.

    Attributes:
        start_s: When it begins, in seconds from the submission.
        input_tokens: Tokens of the prompts, as far as known.
        output_tokens: Tokens of the answers, as far as known.
    """

    start_s: float = 0.0
    succeeded: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def merge(self, other: Slice) -> None:
        """Add the counts of another slice."""
        self.succeeded += other.succeeded
        self.failed += other.failed
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens


class SliceFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The branches of a run over time.

    Attributes:
        width_s: The width of a slice in seconds.
        slices: From the submission to the last branch, without gaps.
        undated: Branches whose end time is unknown; they are in no slice.
    """

    width_s: float
    slices: list[Slice]
    undated: int


class SliceCounter:
    """Counts branches, in any order, by their end time.

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
        """Add the counts of branches that ended at a time in seconds since the epoch; 0: unknown."""
        if not ended_at:
            self._undated += one.succeeded + one.failed
            return
        # By a worker's slow clock, a branch may have ended before the submission.
        number = int((ended_at - self._origin_s) * 1000 // self._widths_ms[0])
        while self._span(number) > _MOST_SLICES:
            number //= self._widen()
        self._first, self._last = min(self._first, number), max(self._last, number)
        self._slices.setdefault(number, Slice()).merge(one)

    def _span(self, number: int) -> int:
        return max(self._last, number) - min(self._first, number) + 1

    def _widen(self) -> int:
        if len(self._widths_ms) == 1:
            self._widths_ms.append(self._widths_ms[0] * _DAYS)
        width_ms = self._widths_ms.pop(0)
        factor = self._widths_ms[0] // width_ms
        merged: dict[int, Slice] = {}
        for number, one in self._slices.items():
            merged.setdefault(number // factor, Slice()).merge(one)
        self._slices = merged
        self._first, self._last = self._first // factor, self._last // factor
        return factor

    def figures(self) -> SliceFigures:
        """Return the figures of the counted branches."""
        dated = sum(one.succeeded + one.failed for one in self._slices.values())
        while self._span(0) > min(max(isqrt(4 * dated), _FEWEST_SLICES), _MOST_SLICES):
            self._widen()
        width_s = self._widths_ms[0] / 1000
        numbers = range(self._first, self._last + 1) if self._slices else ()
        slices = [self._slices.get(number, Slice()) for number in numbers]
        for number, one in zip(numbers, slices, strict=True):
            one.start_s = round(number * width_s, 3)
        return SliceFigures(width_s=width_s, slices=slices, undated=self._undated)
