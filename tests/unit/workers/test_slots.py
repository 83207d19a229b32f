"""How many steps of batches are under way at a time, for each lane apart."""

from __future__ import annotations

import pytest

from workers.batching.slots import Slots


@pytest.mark.parametrize(
    ("stage", "counts", "free", "full"),
    [
        ("submitted", {"is_behind": False}, {"landing"}, {"submitted", "intent"}),
        ("intent", {"is_behind": False}, {"landing"}, {"submitted", "intent"}),
        ("landing", {"is_behind": False}, {"submitted", "intent"}, {"landing"}),
    ],
)
def test_a_full_lane_holds_up_no_other_and_no_other_kind_of_step(stage, counts, free, full):
    slots = Slots()
    for _ in range(8):
        slots.take("lane", stage, **counts)
    assert {name: slots.are_free("lane", name) for name in free} == dict.fromkeys(free, True)
    assert {name: slots.are_free("lane", name) for name in full} == dict.fromkeys(full, False)
    assert all(slots.are_free("other", name) for name in free | full)


def test_results_of_runs_that_are_far_behind_hold_up_no_others_up_to_a_bound():
    slots = Slots()
    for _ in range(15):
        slots.take("lane", "landing", is_behind=True)
    assert slots.are_free("lane", "landing")
    slots.take("lane", "landing", is_behind=True)
    assert not slots.are_free("lane", "landing")
