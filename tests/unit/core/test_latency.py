from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from fanout.core.latency import BOUNDS_S, Latency, bucket_of, percentile_s
from fanout.report.durations import BOUNDS_S as FINE_BOUNDS_S


def latency_of(*seconds: float) -> Latency:
    return Latency(counts=Counter(map(bucket_of, seconds)), sum_s=sum(seconds))


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(0.0, 0), (0.005, 0), (0.006, 1), (1000.0, len(BOUNDS_S) - 1), (1e9, len(BOUNDS_S))],
)
def test_a_bucket_holds_its_bound(seconds, bucket):
    assert bucket_of(seconds) == bucket


def test_bounds_rise_by_a_factor_of_two_at_most():
    assert all(low < high <= 2 * low for low, high in pairwise(BOUNDS_S))


def test_bounds_of_a_report_differ_by_little_more_than_one_percent():
    assert all(low < high < 1.011 * low for low, high in pairwise(FINE_BOUNDS_S))


@pytest.mark.parametrize("bounds_s", [BOUNDS_S, FINE_BOUNDS_S])
def test_any_bounds_have_percentiles(bounds_s):
    took = [0.02 * 1.01**n for n in range(500)]
    counts = Counter(bucket_of(seconds, bounds_s) for seconds in took)
    for share in (0.01, 0.5, 0.99, 1.0):
        bucket = bucket_of(took[round(share * 500) - 1], bounds_s)
        assert bounds_s[bucket - 1] < percentile_s(counts, share, bounds_s) <= bounds_s[bucket]
    assert percentile_s({}, 0.5, bounds_s) is None
    assert percentile_s({len(bounds_s): 1}, 0.5, bounds_s) == bounds_s[-1]


def test_of_nothing_nothing_is_known():
    assert Latency().percentile_s(0.5) is None
    assert Latency().mean_s is None


def test_a_percentile_lies_in_the_bucket_of_its_branch():
    latency = latency_of(*[0.02] * 90, *[4.0] * 10)
    assert 0.015 <= latency.percentile_s(0.5) <= 0.02
    assert 3.0 <= latency.percentile_s(0.95) <= 5.0
    assert latency.percentile_s(0.9) == pytest.approx(0.02)
    assert latency.mean_s == pytest.approx(0.418)


def test_what_is_beyond_the_last_bound_is_said_to_be_at_it():
    assert latency_of(5_000.0).percentile_s(0.5) == BOUNDS_S[-1]


def test_a_percentile_is_no_more_than_the_sum_of_the_durations_allows():
    quick = Latency(counts={0: 10}, sum_s=0.002)
    assert [quick.percentile_s(share) for share in (0.5, 0.9, 1.0)] == pytest.approx(
        [0.0002, 0.00036, 0.0004]
    )
    assert Latency(counts={0: 10}, sum_s=0.049).percentile_s(0.5) == pytest.approx(0.0025)


@pytest.mark.parametrize(
    ("took", "p50_s"),
    [
        ([0.001] * 40, 0.001),
        ([0.0001] * 39 + [0.0002], 0.0001),
        ([0.001] * 40 + [0.4], 0.0025),
        ([0.0045] * 40, 0.0025),
        ([0.0] * 40, 0.0025),
    ],
)
def test_the_median_of_quick_branches_is_not_half_of_the_first_bound(took, p50_s):
    """With a slow branch the sum says little of the quick ones: then it is, as before."""
    assert latency_of(*took).percentile_s(0.5) == pytest.approx(p50_s, rel=0.05)


def test_percentiles_rise():
    latency = latency_of(*(0.01 * n for n in range(1, 200)))
    shown = [latency.percentile_s(share / 100) for share in range(1, 101)]
    assert all(lower <= higher for lower, higher in pairwise(shown))


def test_cumulative_counts_end_with_all():
    latency = latency_of(0.001, 0.5, 5_000.0)
    assert latency.cumulative()[0] == 1
    assert latency.cumulative()[-2:] == [2, 3]
