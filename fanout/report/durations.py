"""The histogram of the durations of branches; its size does not depend on their number."""

from __future__ import annotations

import math
from collections import Counter

import msgspec

from fanout.core.latency import bucket_of, percentile_s

__all__ = ["BOUNDS_S", "Bin", "DurationCounter", "DurationFigures"]

_PER_DOUBLING = 64
_LEAST_LOG2, _MOST_LOG2 = -24, 24
# Shorter durations count as this one, as a few of them would stretch the chart.
_LEAST_S = 1e-5
# A bar has at least so many buckets, which makes it 2 % wide.
_LEAST_WIDTH = 2
_FEWEST_BINS, _MOST_BINS = 8, 40


def _bound_s(bucket: int) -> float:
    """Return the lower bound of a bucket."""
    return float(2 ** (bucket / _PER_DOUBLING + _LEAST_LOG2))


# Upper bounds on a logarithmic scale: neighbours differ by 1 %, up to half a year.
BOUNDS_S = tuple(map(_bound_s, range(1, (_MOST_LOG2 - _LEAST_LOG2) * _PER_DOUBLING + 1)))


class Bin(msgspec.Struct, frozen=True, kw_only=True):
    """A bar of the histogram: its bounds, and how many branches between them ended how."""

    low_s: float
    high_s: float
    succeeded: int
    failed: int


class DurationFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The durations of the branches that made a call, waits and retries included.

    Attributes:
        count: The number of these branches. Without any, all durations are None.
        p50_s: The median. The error of percentiles is at most 2 %.
        bins: The histogram, without gaps; empty bins are added to a narrow one.
    """

    count: int
    mean_s: float | None
    least_s: float | None
    p50_s: float | None
    p90_s: float | None
    p99_s: float | None
    most_s: float | None
    bins: list[Bin]


class DurationCounter:
    """Counts durations one by one."""

    def __init__(self) -> None:
        self._succeeded: Counter[int] = Counter()
        self._failed: Counter[int] = Counter()
        self._sum_s = 0.0
        self._least_s = math.inf
        self._most_s = 0.0

    def add(self, seconds: float, *, failed: bool) -> None:
        """Count the duration of one branch."""
        counts = self._failed if failed else self._succeeded
        counts[bucket_of(max(seconds, _LEAST_S), BOUNDS_S)] += 1
        self._sum_s += seconds
        self._least_s = min(self._least_s, seconds)
        self._most_s = max(self._most_s, seconds)

    def figures(self) -> DurationFigures:
        """Return the figures of the counted durations."""
        counts = self._succeeded + self._failed
        count = counts.total()
        if not count:
            nothing = dict.fromkeys(("mean_s", "least_s", "p50_s", "p90_s", "p99_s", "most_s"))
            return DurationFigures(count=0, bins=[], **nothing)
        return DurationFigures(
            count=count,
            mean_s=self._sum_s / count,
            least_s=self._least_s,
            p50_s=self._percentile_s(counts, 0.5),
            p90_s=self._percentile_s(counts, 0.9),
            p99_s=self._percentile_s(counts, 0.99),
            most_s=self._most_s,
            bins=self._bins(counts),
        )

    def _percentile_s(self, counts: Counter[int], share: float) -> float:
        seconds = percentile_s(counts, share, BOUNDS_S) or 0.0
        return min(max(seconds, self._least_s), self._most_s)

    def _bins(self, counts: Counter[int]) -> list[Bin]:
        most = min(max(math.isqrt(4 * counts.total()), _FEWEST_BINS), _MOST_BINS)
        # Buckets are merged in pairs, and the pairs in pairs: the counts stay exact.
        width = _LEAST_WIDTH
        while max(counts) // width - min(counts) // width >= most:
            width *= 2
        low, high = min(counts) // width, max(counts) // width
        short = max(0, _FEWEST_BINS - (high - low + 1))
        succeeded, failed = _merged(self._succeeded, width), _merged(self._failed, width)
        return [
            Bin(
                low_s=_bound_s(number * width),
                high_s=_bound_s((number + 1) * width),
                succeeded=succeeded[number],
                failed=failed[number],
            )
            for number in range(low - short // 2, high + 1 + (short + 1) // 2)
        ]


def _merged(counts: Counter[int], width: int) -> Counter[int]:
    merged: Counter[int] = Counter()
    for number, count in counts.items():
        merged[number // width] += count
    return merged
