"""The benchmark under faults: its schedules, and how it reads a ledger."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType


@pytest.fixture
def schedule() -> ModuleType:
    return importlib.import_module("faults.schedule")


@pytest.fixture
def ledger() -> ModuleType:
    return importlib.import_module("faults.ledger")


def test_the_same_seed_gives_the_same_schedule(schedule):
    fleet = schedule.FleetShape(workers=4, prefork=2)
    first = schedule.make_schedule(7, fleet, faults=30, gap_s=2)
    assert first == schedule.make_schedule(7, fleet, faults=30, gap_s=2)
    assert first != schedule.make_schedule(8, fleet, faults=30, gap_s=2)


def test_each_kind_has_its_turn_before_one_comes_again(schedule):
    faults = schedule.make_schedule(1, schedule.FleetShape(), faults=len(schedule.KINDS), gap_s=1)
    assert {fault.kind for fault in faults} == set(schedule.KINDS)


def test_the_kinds_may_be_a_few(schedule):
    faults = schedule.make_schedule(
        1, schedule.FleetShape(), faults=9, gap_s=1, kinds=["stop_long"]
    )
    assert {fault.kind for fault in faults} == {"stop_long"}


def test_a_child_dies_only_where_there_are_children(schedule):
    fleet = schedule.FleetShape(workers=3, prefork=1)
    faults = schedule.make_schedule(1, fleet, faults=20, gap_s=1, kinds=["kill_child"])
    assert {fault.slot for fault in faults} == {2}
    threads = schedule.FleetShape(workers=3, prefork=0)
    faults = schedule.make_schedule(1, threads, faults=99, gap_s=1)
    assert "kill_child" not in {fault.kind for fault in faults}


@pytest.mark.parametrize("seed", range(20))
def test_faults_come_in_order_and_stops_are_shorter_or_longer_than_the_lease(schedule, seed):
    fleet = schedule.FleetShape(lease_s=10)
    faults = schedule.make_schedule(seed, fleet, faults=len(schedule.KINDS), gap_s=1)
    assert faults == sorted(faults, key=lambda fault: fault.at_s)
    lasts = {fault.kind: fault.lasts_s for fault in faults}
    assert 0 < lasts["stop_short"] < 7.5
    assert lasts["stop_long"] > 10


def test_each_new_kind_can_be_carried_out(schedule):
    injector = importlib.import_module("faults.injector")
    refusals = importlib.import_module("faults.refusals")
    carried_out = {
        name for name in schedule.KINDS if f'"{name}"' in Path(injector.__file__).read_text()
    }
    assert carried_out | set(schedule.REFUSALS) | set(schedule.OUTAGES) == set(schedule.KINDS)
    assert {says for says, _ in schedule.REFUSALS.values()} == set(refusals.WAYS)


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


def test_a_call_that_died_with_its_worker_excuses_one_more(ledger):
    calls = ledger.parse(
        lines("""
        10.0 1 w1 start b0
        10.5 1 w1 start b1
        11.0 1 w1 end b1
        17.0 2 w2 start b0
        18.0 2 w2 end b0
        """)
    )
    kill = ledger.Injury(
        number=3, kind="kill_worker", at=12.0, dead_at=12.0, worker="w1", excuses=True
    )
    verdict = ledger.analyse(calls, [kill], ended_at=19.0)
    assert verdict.calls == 3
    assert (verdict.repeated_struck, verdict.repeated_other) == (1, 0)
    assert verdict.worker_recovery_s == {3: 5.0}
    assert verdict.call_recovery_s == [5.0]


def test_a_second_repetition_is_not_excused_by_one_fault(ledger):
    calls = ledger.parse(
        lines("""
        10.0 1 w1 start b0
        17.0 2 w2 start b0
        17.1 3 w3 start b0
        18.0 2 w2 end b0
        18.1 3 w3 end b0
        """)
    )
    kill = ledger.Injury(
        number=0, kind="kill_worker", at=12.0, dead_at=12.0, worker="w1", excuses=True
    )
    verdict = ledger.analyse(calls, [kill], ended_at=19.0)
    assert (verdict.repeated_struck, verdict.repeated_other) == (1, 1)
    assert verdict.others == ["b0"]


def test_without_a_fault_each_repetition_counts_as_other(ledger):
    calls = ledger.parse(
        lines("""
        10.0 1 w1 start b0
        11.0 1 w1 end b0
        12.0 2 w2 start b0
        13.0 2 w2 end b0
        """)
    )
    restart = ledger.Injury(number=0, kind="restart_server", at=10.5, until=11.5, is_server=True)
    verdict = ledger.analyse(calls, [restart], ended_at=14.0)
    assert verdict.others == ["b0"]
    assert verdict.server_recovery_s == {0: 0.5}


def test_an_answer_that_was_not_written_before_the_kill_is_told_apart(ledger):
    calls = ledger.parse(
        lines("""
        10.0 1 w1 start b0
        11.0 1 w1 end b0
        17.0 2 w2 start b0
        18.0 2 w2 end b0
        """)
    )
    kill = ledger.Injury(
        number=0, kind="kill_worker", at=11.2, dead_at=11.2, worker="w1", excuses=True
    )
    verdict = ledger.analyse(calls, [kill], ended_at=19.0)
    assert (verdict.repeated_struck, verdict.repeated_unwritten) == (1, 1)
    assert verdict.call_recovery_s == []


def test_a_child_is_known_by_its_process(ledger):
    calls = ledger.parse(
        lines("""
        10.0 11 w1 start b0
        10.0 12 w1 start b1
        12.0 13 w1 start b0
        12.0 13 w1 start b1
        """)
    )
    kill = ledger.Injury(number=0, kind="kill_child", at=11.0, dead_at=11.0, pid=11, excuses=True)
    verdict = ledger.analyse(calls, [kill], ended_at=19.0)
    assert (verdict.repeated_struck, verdict.others) == (1, ["b1"])


def test_a_fault_that_was_skipped_excuses_nothing(ledger):
    calls = ledger.parse(["10.0 1 w1 start b0", "12.0 2 w2 start b0"])
    skipped = ledger.Injury(
        number=0, kind="kill_worker", at=11.0, worker="w1", excuses=True, skipped="it had ended"
    )
    assert ledger.analyse(calls, [skipped], ended_at=13.0).others == ["b0"]


def test_a_call_dies_once(ledger):
    """Its child was killed, it ran elsewhere, and later the whole worker was killed."""
    calls = ledger.parse(["10.0 11 w1 start b0", "12.0 12 w2 start b0", "13.0 12 w2 end b0"])
    child = ledger.Injury(number=0, kind="kill_child", at=11.0, dead_at=11.0, pid=11, excuses=True)
    worker = ledger.Injury(
        number=1, kind="kill_worker", at=20.0, dead_at=20.0, worker="w1", excuses=True
    )
    verdict = ledger.analyse(calls, [child, worker], ended_at=30.0)
    assert verdict.worker_recovery_s == {0: 1.0}


def test_a_server_that_is_struck_again_before_the_next_call_has_recovered_once(ledger):
    calls = ledger.parse(["10.0 1 w1 start b0", "16.0 1 w1 start b1"])
    faults = [
        ledger.Injury(number=0, kind="kill_server", at=11.0, until=12.0, is_server=True),
        ledger.Injury(number=1, kind="kill_server", at=13.0, until=14.5, is_server=True),
    ]
    assert ledger.analyse(calls, faults, ended_at=17.0).server_recovery_s == {1: 1.5}


def test_nothing_is_to_recover_where_a_branch_has_its_answer(ledger):
    calls = ledger.parse(
        ["10.0 1 w1 start b0", "11.0 2 w2 start b0", "12.0 2 w2 end b0"],
    )
    kill = ledger.Injury(number=0, kind="kill_worker", at=13.0, dead_at=13.0, worker="w1")
    assert ledger.analyse(calls, [kill], ended_at=30.0).worker_recovery_s == {}


@pytest.mark.parametrize(
    ("keys", "again"),
    [
        ("b1 b2 b1+ b2+ b1++ b2++", []),
        # A call that a fault has cut off.
        ("b1 b1 b1+ b1+ b1++", []),
        ("b1 b1+ b1 b2 b2+ b2++ b2+", ["b1", "b2+"]),
    ],
)
def test_a_finished_step_is_not_to_be_called_again(ledger, keys, again):
    lines = [f"{at}.0 1 w start {key}" for at, key in enumerate(keys.split())]
    assert ledger.finished_again(ledger.parse(lines), mark="+") == again
