from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanout.policy.admission import (
    in_play_limit,
    is_draining,
    shard_window,
    turns_of,
    workers_wanted,
)


@pytest.mark.parametrize(
    ("concurrency", "window"),
    [(0, 2), (1, 2), (200, 3), (250, 3), (251, 3), (1000, 7), (10_000, 61), (10**6, 64)],
)
def test_the_window_holds_three_times_what_the_workers_can(concurrency, window):
    assert shard_window(concurrency) == window


@given(max_workers=st.integers(1, 20_000))
def test_the_next_branches_of_a_capped_run_are_there_before_the_last_have_ended(max_workers):
    limit = in_play_limit(max_workers)
    assert 2 * max_workers < limit <= min(6 * max_workers, 2 * max_workers + 512)


@pytest.mark.parametrize(
    ("priority", "turns"), [(0.01, 1), (0.25, 1), (0.5, 2), (1, 4), (4, 16), (16, 64)]
)
def test_a_priority_is_a_number_of_turns(priority, turns):
    assert turns_of(priority) == turns


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
    ("taken", "waiting_for_permits", "wanted"), [(70, 67, 1), (70, 30, 2), (3, 9, 0)]
)
def test_no_worker_is_wanted_for_what_waits_for_a_permit(taken, waiting_for_permits, wanted):
    counts = {"waiting": 0, "taken": taken, "waiting_for_permits": waiting_for_permits}
    assert workers_wanted(**counts, concurrencies=[20], usual=32) == wanted


@pytest.mark.parametrize(
    ("size", "points"),
    [(500, [125, 31, 7]), (64, [16, 4, 1]), (8, [2]), (4, [1]), (3, []), (1, [])],
)
def test_a_shard_drains_at_a_few_points(size, points):
    left = [size - ended for ended in range(1, size + 1) if is_draining(ended=ended, size=size)]
    assert left == points
