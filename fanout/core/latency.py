"""Latency histograms of branches, with fixed bounds so that any two can be added up."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["BOUNDS_S", "Latency", "bucket_of", "percentile_s"]

# Upper bounds in seconds; a last bucket has no bound. Neighbours differ by at most a factor of two,
# so a percentile is wrong by at most that factor.
BOUNDS_S = (
    0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7,
    1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 50.0, 70.0,
    100.0, 150.0, 200.0, 300.0, 500.0, 1000.0,
)  # fmt: skip


def bucket_of(seconds: float, bounds_s: Sequence[float] = BOUNDS_S) -> int:
    """Return the index of the bucket for a duration: ``len(bounds_s)`` beyond the last bound."""
    return bisect_left(bounds_s, seconds)


def percentile_s(
    counts: Mapping[int, int], share: float, bounds_s: Sequence[float] = BOUNDS_S
) -> float | None:
    """Return the seconds within which a share, 0 to 1, of the branches in buckets ended.

    It assumes that branches are spread evenly within a bucket. None if there is no branch.
    """
    target, before, last = share * sum(counts.values()), 0, len(bounds_s) - 1
    for bucket, here in sorted(counts.items()):
        if here and before + here >= target:
            low = bounds_s[bucket - 1] if bucket else 0.0
            high = bounds_s[min(bucket, last)]
            return low + (high - low) * max(0.0, target - before) / here
        before += here
    return bounds_s[last] if before else None


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """The durations of the branches that made a call, from the first call to the end.

    Attributes:
        counts: Branches in each bucket of BOUNDS_S, by index; empty buckets may be missing.
        sum_s: The sum of the durations, in seconds.
        least_s: The shortest duration, or less; None if unknown.
        most_s: The longest duration, or what none of them can have passed, such as the time of their run;
            None if unknown.
    """

    counts: dict[int, int] = {}
    sum_s: float = 0.0
    least_s: float | None = None
    most_s: float | None = None

    @property
    def count(self) -> int:
        """Branches in all buckets."""
        return sum(self.counts.values())

    @property
    def mean_s(self) -> float | None:
        """The mean duration of a branch in seconds; None if there is no branch."""
        return self.sum_s / self.count if self.counts else None

    def percentile_s(self, share: float) -> float | None:
        """Return the seconds within which a share, 0 to 1, of the branches ended, if any did.

        The first bucket begins at 0, so its bound may be many times what a quick branch took. There,
        branches are taken to be spread evenly around their mean, as far as the sum of the durations
        says what that is. The rest took at least as long as the percentile, so the sum limits it, too.
        It lies between ``least_s`` and ``most_s``.
        """
        seconds = percentile_s(self.counts, share)
        if seconds is None or not self.sum_s:
            return seconds
        if self.counts.get(0) and seconds <= BOUNDS_S[0]:
            seconds *= min(1.0, 2 * self._first_mean_s() / BOUNDS_S[0])
        seconds = min(seconds, self.sum_s / max(1.0, (1 - share) * self.count))
        seconds = seconds if self.most_s is None else min(seconds, self.most_s)
        return seconds if self.least_s is None else max(seconds, self.least_s)

    def _first_mean_s(self) -> float:
        """Return the most that the branches in the first bucket took in the mean."""
        others = ((bucket, count) for bucket, count in self.counts.items() if bucket)
        least_s = sum(count * BOUNDS_S[bucket - 1] for bucket, count in others)
        return max(0.0, self.sum_s - least_s) / self.counts[0]

    def cumulative(self) -> list[int]:
        """Return how many branches took at most each bound, and last the count of all."""
        return list(accumulate(self.counts.get(n, 0) for n in range(len(BOUNDS_S) + 1)))
