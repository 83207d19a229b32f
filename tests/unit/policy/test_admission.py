from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanout.policy.admission import is_draining, plan_permits, shard_window, workers_wanted


@pytest.mark.parametrize(
    ("concurrency", "window"),
    [(0, 2), (1, 2), (200, 3), (250, 3), (251, 3), (1000, 7), (10_000, 61), (10**6, 64)],
)
def test_the_window_holds_three_times_what_the_workers_can(concurrency, window):
    assert shard_window(concurrency) == window


@given(max_workers=st.integers(1, 20_000), shards=st.none() | st.integers(1, 500))
def test_lanes_fill_max_workers_and_no_more_shards_than_there_are(max_workers, shards):
    permits = plan_permits(max_workers=max_workers, shards=shards)
    assert permits.cap == max_workers
    assert 1 <= permits.window <= (shards or 64)
    assert permits.window * permits.per_shard >= max_workers, "the cap can be reached"
    assert (permits.window - 1) * permits.per_shard < max_workers, (
        "no shard is left without a permit"
    )


@pytest.mark.parametrize(
    ("max_workers", "shards", "window", "per_shard"),
    [(1, None, 1, 1), (4, None, 2, 2), (4, 1, 1, 4), (200, None, 4, 50), (200, 2, 2, 100)],
)
def test_how_max_workers_is_spread(max_workers, shards, window, per_shard):
    permits = plan_permits(max_workers=max_workers, shards=shards)
    assert (permits.window, permits.per_shard) == (window, per_shard)


@pytest.mark.parametrize(
    ("waiting", "taken", "concurrencies", "wanted"),
    [
        (0, 0, [], 0),
        (0, 0, [32, 32], 0),
        (1, 0, [], 1),
        (33, 0, [], 2),
        (0, 1, [32], 1),
        (968, 32, [32], 32),
        (100, 20, [10, 30], 6),
        (101, 20, [10, 30], 7),
        (5, 0, [0], 5),
    ],
)
def test_how_many_workers_would_hold_all_branches(waiting, taken, concurrencies, wanted):
    assert (
        workers_wanted(waiting=waiting, taken=taken, concurrencies=concurrencies, usual=32)
        == wanted
    )


@pytest.mark.parametrize(
    ("size", "points"),
    [(500, [125, 31, 7]), (64, [16, 4, 1]), (8, [2]), (4, [1]), (3, []), (1, [])],
)
def test_a_shard_drains_at_a_few_points(size, points):
    left = [size - ended for ended in range(1, size + 1) if is_draining(ended=ended, size=size)]
    assert left == points
