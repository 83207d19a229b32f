"""How long branches took: a fine histogram of bounded size, whatever the number of branches."""

from __future__ import annotations

import math

import msgspec

__all__ = ["Bin", "DurationFigures", "Durations"]

# Buckets of equal width on a logarithmic scale: neighbours differ by 2 %, from 10 µs to months.
_PER_DOUBLING = 32
_LEAST_S = 1e-5
_MOST_S = 1e7
_FEWEST_BINS, _MOST_BINS = 8, 40


class Bin(msgspec.Struct, frozen=True, kw_only=True):
    """A bar of the histogram.

    Attributes:
        low_s: Its lower bound.
        high_s: Its upper bound.
        succeeded: Branches between them with an output.
        failed: Branches between them with an error.
    """

    low_s: float
    high_s: float
    succeeded: int
    failed: int


class DurationFigures(msgspec.Struct, frozen=True, kw_only=True):
    """How long the branches took that made a call, waits and retries included.

    Attributes:
        count: How many those are.
        mean_s: On average; None where there is none.
        least_s: The fastest.
        p50_s: Half of them took no longer. Percentiles are off by 2 % at most.
        p90_s: Nine in ten took no longer.
        p99_s: All but one in a hundred took no longer.
        most_s: The slowest.
        bins: The histogram, without a gap; alike ones have empty bins beside them.
    """

    count: int
    mean_s: float | None
    least_s: float | None
    p50_s: float | None
    p90_s: float | None
    p99_s: float | None
    most_s: float | None
    bins: list[Bin]


class Durations:
    """Takes durations one by one."""

    def __init__(self) -> None:
        self._succeeded: dict[int, int] = {}
        self._failed: dict[int, int] = {}
        self._count = 0
        self._sum_s = 0.0
        self._least_s = math.inf
        self._most_s = 0.0

    def add(self, seconds: float, *, failed: bool) -> None:
        """Take the duration of one branch."""
        counts = self._failed if failed else self._succeeded
        number = math.floor(math.log2(min(max(seconds, _LEAST_S), _MOST_S)) * _PER_DOUBLING)
        counts[number] = counts.get(number, 0) + 1
        self._count += 1
        self._sum_s += seconds
        self._least_s = min(self._least_s, seconds)
        self._most_s = max(self._most_s, seconds)

    def figures(self) -> DurationFigures:
        """Return what was taken."""
        if not self._count:
            nothing = dict.fromkeys(("mean_s", "least_s", "p50_s", "p90_s", "p99_s", "most_s"))
            return DurationFigures(count=0, bins=[], **nothing)
        return DurationFigures(
            count=self._count,
            mean_s=self._sum_s / self._count,
            least_s=self._least_s,
            p50_s=self._percentile(0.5),
            p90_s=self._percentile(0.9),
            p99_s=self._percentile(0.99),
            most_s=self._most_s,
            bins=self._bins(),
        )

    def _percentile(self, share: float) -> float:
        numbers = sorted(self._succeeded.keys() | self._failed.keys())
        wanted, before = share * self._count, 0
        for number in numbers:
            before += self._succeeded.get(number, 0) + self._failed.get(number, 0)
            if before >= wanted:
                break
        return min(max(_bound(number + 0.5), self._least_s), self._most_s)

    def _bins(self) -> list[Bin]:
        numbers = self._succeeded.keys() | self._failed.keys()
        most = min(max(math.isqrt(4 * self._count), _FEWEST_BINS), _MOST_BINS)
        # Buckets are merged in pairs, and the pairs in pairs: the counts stay exact.
        width = 1
        while max(numbers) // width - min(numbers) // width >= most:
            width *= 2
        low, high = min(numbers) // width, max(numbers) // width
        short = max(0, _FEWEST_BINS - (high - low + 1))
        succeeded, failed = _merged(self._succeeded, width), _merged(self._failed, width)
        return [
            Bin(
                low_s=_bound(number * width),
                high_s=_bound((number + 1) * width),
                succeeded=succeeded.get(number, 0),
                failed=failed.get(number, 0),
            )
            for number in range(low - short // 2, high + 1 + (short + 1) // 2)
        ]


def _bound(number: float) -> float:
    return float(2 ** (number / _PER_DOUBLING))


def _merged(counts: dict[int, int], width: int) -> dict[int, int]:
    merged: dict[int, int] = {}
    for number, count in counts.items():
        merged[number // width] = merged.get(number // width, 0) + count
    return merged
