"""Admission of waiting branches: places, permits and fair shares."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from functools import partial

import pytest

from fanout.core.errors import BrokerError
from tests.fakes import fake_store
from workers.context import admission
from workers.context.admission import Admission


class Fleet:
    """Some processes on one store; counts the calls in flight of each run."""

    def __init__(self, *runs):
        self.store = fake_store()
        for run_id in runs:
            self.store.create_run(run_id, spec="{}", created_at=0.0)
        self.in_flight, self.most, self.done = Counter(), Counter(), Counter()
        self.is_away, self.refused = False, 0
        # Calls end at once, or after ``call_s``, once it is open.
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked, self.requests = [], []

    def process(self, name, places=None, **options):
        admission = Admission(partial(self._ask, name), **{"sure_s": 1_000.0, **options})
        admission.places = places
        return admission

    def _ask(self, name, requests):
        if self.is_away:
            self.refused += 1
            raise BrokerError("away")
        self.requests.append([one.run_id for one in requests])
        self.asked += [(name, one.has, one.wanted) for one in requests]
        return self.share(name, requests)

    def share(self, name, requests):
        return self.store.share_permits(requests, process=name, dies_after_s=1_000)

    async def call(self, admission, run_id, cap, call_s=0.0, weight=1.0):
        await admission.enter(run_id, cap, weight)
        self.in_flight[run_id] += 1
        self.most[run_id] = max(self.most[run_id], self.in_flight[run_id])
        try:
            await asyncio.sleep(call_s)
            await self.gate.wait()
        finally:
            self.in_flight[run_id] -= 1
            self.done[id(admission)] += 1
            admission.leave(run_id)

    def calls(self, admission, run_id, count, cap, **options):
        return [
            asyncio.create_task(self.call(admission, run_id, cap, **options)) for _ in range(count)
        ]


async def reached(condition):
    for _ in range(6_000):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it does not come to that")


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 90))


@pytest.mark.parametrize("cap", [1, 3, 50])
def test_a_cap_is_reached_and_never_exceeded(cap):
    async def main():
        fleet = Fleet("r")
        one = fleet.process("a", places=20)
        await asyncio.gather(*fleet.calls(one, "r", 100, cap, call_s=0.002))
        await one.aclose()
        assert fleet.most["r"] == min(cap, 20)

    run(main())


def test_processes_share_a_cap_and_none_is_left_out():
    async def main():
        fleet = Fleet("r")
        processes = [fleet.process(name, places=20) for name in "abc"]
        tasks = [task for one in processes for task in fleet.calls(one, "r", 300, 10, call_s=0.02)]
        least = 0
        while least == 0:
            await asyncio.sleep(0.01)
            least = min(fleet.done[id(one)] for one in processes)
        assert max(fleet.done.values()) < 300, "none waits until another has no more"
        await asyncio.gather(*tasks)
        assert fleet.most["r"] <= 10
        for one in processes:
            await one.aclose()

    run(main())


def test_a_process_leaves_permits_to_others_for_which_it_has_no_place(monkeypatch):
    monkeypatch.setattr("workers.context.admission._PLACELESS_S", 0.1)
    monkeypatch.setattr("workers.context.admission._REPORT_S", 0.05)
    monkeypatch.setattr("workers.context.admission._LAST_POLL_S", 0.05)

    async def main():
        names = [f"r{number}" for number in range(8)]
        fleet = Fleet(*names)
        one, other = fleet.process("a", places=4), fleet.process("b", places=4)
        tasks = [task for name in names for task in fleet.calls(one, name, 500, 1, call_s=0.02)]
        await reached(lambda: sum(run.granted for run in one._runs.values()) == 8)
        tasks += [task for name in names for task in fleet.calls(other, name, 500, 1, call_s=0.02)]
        most = 0
        while most < 8:
            await asyncio.sleep(0.01)
            most = max(most, fleet.in_flight.total())
        assert max(fleet.most.values()) == 1
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(one.aclose(), other.aclose())

    run(main())


@pytest.mark.parametrize("ready", [60, 4])
def test_a_run_with_a_cap_gets_places_from_one_that_has_them_all(ready):
    """Whether further branches of that one wait, or one comes whenever one ends."""

    async def main():
        fleet = Fleet("capped", "free")
        one = fleet.process("a", places=4)

        async def goes_on(count):
            for _ in range(count):
                await fleet.call(one, "free", None, call_s=0.02)

        free = [asyncio.create_task(goes_on(240 // ready)) for _ in range(ready)]
        await reached(lambda: fleet.in_flight["free"] == 4)
        await asyncio.gather(*fleet.calls(one, "capped", 10, 2, call_s=0.02))
        assert not all(task.done() for task in free)
        assert fleet.most["capped"] == 2
        await asyncio.gather(*free)
        await one.aclose()

    run(main())


def test_what_waits_for_permits_takes_no_place_of_other_runs():
    async def main():
        fleet = Fleet("capped", "free")
        one = fleet.process("a", places=4)
        capped = fleet.calls(one, "capped", 50, 1, call_s=0.01)
        await reached(lambda: fleet.most["capped"] == 1)
        assert one.waiting_for_permits > 30
        free = fleet.calls(one, "free", 30, None, call_s=0.01)
        await asyncio.gather(*free)
        assert fleet.most["free"] == 3, "the capped run has its one place"
        assert not all(task.done() for task in capped)
        await asyncio.gather(*capped)
        assert one.waiting_for_permits == 0
        await one.aclose()

    run(main())


@pytest.mark.parametrize(("weight", "share"), [(1.0, 5), (4.0, 8), (0.25, 2)])
def test_a_run_has_places_by_its_weight(weight, share):
    async def main():
        fleet = Fleet("large", "small")
        one = fleet.process("a", places=10)
        large = fleet.calls(one, "large", 100, None, call_s=0.01)
        await asyncio.sleep(0)
        small = fleet.calls(one, "small", 50, None, call_s=0.01, weight=weight)
        await asyncio.gather(*large[:60])
        assert fleet.most["small"] == share
        await asyncio.gather(*large, *small)

    run(main())


def test_permits_that_are_no_longer_surely_its_own_are_not_used():
    async def main():
        fleet = Fleet("r")
        later_s = 0.0
        one = fleet.process("a", sure_s=20.0, clock=lambda: time.monotonic() + later_s)
        fleet.gate.clear()
        holding = fleet.calls(one, "r", 2, 2)
        await reached(lambda: fleet.in_flight["r"] == 2)
        fleet.is_away, later_s = True, 21.0
        late = fleet.calls(one, "r", 1, 2)
        fleet.gate.set()
        await asyncio.gather(*holding)
        refused = fleet.refused
        await reached(lambda: fleet.refused > refused)
        assert not late[0].done()
        fleet.is_away = False
        await asyncio.gather(*late)
        await one.aclose()

    run(main())


@pytest.mark.parametrize(
    "fault", [BrokerError("away"), RuntimeError("can't start new thread"), ValueError("a bug")]
)
def test_branches_outlive_a_request_for_permits_that_fails(fault):
    async def main():
        fleet = Fleet("r")
        faults = [fault, fault]

        def ask(requests):
            if faults:
                raise faults.pop()
            return fleet.share("a", requests)

        one = Admission(ask, sure_s=1_000)
        await asyncio.gather(*fleet.calls(one, "r", 5, 2))
        assert faults == []
        assert (fleet.done[id(one)], fleet.most["r"]) == (5, 2)
        await one.aclose()

    run(main())


def test_cancelled_branches_leave_nothing_behind():
    async def main():
        fleet = Fleet("r")
        one = fleet.process("a", places=2)
        tasks = fleet.calls(one, "r", 40, 3, call_s=0.01)
        await reached(lambda: fleet.most["r"] == 2)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*fleet.calls(one, "r", 10, 3))
        assert fleet.in_flight["r"] == 0
        await reached(lambda: fleet.store._redis.hgetall("fanout:run:r:permits") == {})
        await reached(lambda: one._runs == {})

    run(main())


def test_a_deleted_run_does_not_keep_its_branches():
    async def main():
        fleet = Fleet("r")
        one = fleet.process("a", places=5)
        tasks = fleet.calls(one, "r", 20, 1, call_s=0.05)
        await reached(lambda: fleet.most["r"] == 1)
        fleet.store.begin_delete("r")
        fleet.store.delete_run("r")
        await asyncio.gather(*tasks)
        assert fleet.most["r"] > 1, "their begin tells them that the run is gone"
        await one.aclose()

    run(main())


def test_a_process_asks_for_no_more_permits_than_it_can_use():
    async def main():
        fleet = Fleet("r")
        few, many = fleet.process("few", places=2), fleet.process("many", places=50)
        tasks = fleet.calls(few, "r", 30, 10, call_s=0.05)
        await reached(lambda: fleet.most["r"] == 2)
        tasks += fleet.calls(many, "r", 60, 10, call_s=0.05)
        await asyncio.gather(*tasks)
        assert fleet.most["r"] == 10, "none lies idle at the process with few places"
        assert max(wanted for name, _, wanted in fleet.asked if name == "few") == 2
        for one in (few, many):
            await one.aclose()

    run(main())


def test_a_process_that_has_all_permits_does_not_ask_at_each_arrival():
    async def main():
        fleet = Fleet("r")
        one = fleet.process("a", places=20)
        fleet.gate.clear()
        holding = fleet.calls(one, "r", 4, 4)
        await reached(lambda: fleet.in_flight["r"] == 4)
        before, late = len(fleet.asked), []
        for _ in range(50):
            late += fleet.calls(one, "r", 1, 4)
            await asyncio.sleep(0.002)
        assert len(fleet.asked) - before < 5
        fleet.gate.set()
        await asyncio.gather(*holding, *late)
        await one.aclose()

    run(main())


def test_the_permits_of_all_runs_are_reported_together(monkeypatch):
    monkeypatch.setattr("workers.context.admission._REPORT_S", 0.2)

    async def main():
        names = [f"r{number}" for number in range(60)]
        fleet = Fleet(*names)
        one = fleet.process("a")
        fleet.gate.clear()
        holding = [task for name in names for task in fleet.calls(one, name, 1, 2)]
        await reached(lambda: fleet.in_flight.total() == 60)
        fleet.requests.clear()
        await reached(lambda: len(fleet.requests) >= 2)
        assert [sorted(runs) for runs in fleet.requests[:2]] == [sorted(names)] * 2
        fleet.gate.set()
        await asyncio.gather(*holding)
        await one.aclose()

    run(main())


def test_runs_that_lack_permits_ask_together():
    async def main():
        names = [f"r{number}" for number in range(60)]
        fleet = Fleet(*names)
        one, other = fleet.process("a"), fleet.process("b")
        fleet.gate.clear()
        holding = [task for name in names for task in fleet.calls(other, name, 1, 1)]
        await reached(lambda: fleet.in_flight.total() == 60)
        fleet.requests.clear()
        waiting = [task for name in names for task in fleet.calls(one, name, 1, 1)]
        await reached(lambda: len(fleet.requests) >= 6)
        assert sum(map(len, fleet.requests[:6])) > 6 * 30, "and not one after the other"
        fleet.gate.set()
        await asyncio.gather(*holding, *waiting)
        assert max(fleet.most.values()) == 1
        await asyncio.gather(one.aclose(), other.aclose())

    run(main())


def test_a_run_whose_permits_cannot_be_read_holds_up_no_other(caplog, monkeypatch):
    # Another test may have had its line just before.
    monkeypatch.setattr(admission._log, "filters", [])

    async def main():
        fleet = Fleet("bad", "good")
        fleet.store._redis.set("fanout:run:bad:permits", "damaged")
        one = fleet.process("a")
        bad = fleet.calls(one, "bad", 3, 2)
        await asyncio.gather(*fleet.calls(one, "good", 30, 2, call_s=0.01))
        assert not [task for task in bad if task.done()]
        assert (
            "cannot ask for permits of run bad: the permits of run bad are damaged" in caplog.text
        )
        fleet.store._redis.delete("fanout:run:bad:permits")
        await asyncio.gather(*bad)
        assert fleet.most == {"bad": 2, "good": 2}
        await one.aclose()

    run(main())


def test_a_late_answer_does_not_undo_that_permits_are_given_back():
    async def main():
        fleet = Fleet("r")
        one = fleet.process("a", places=20)
        began, go_on, ask = threading.Event(), threading.Event(), one._ask

        def slow(requests):
            if not began.is_set():
                began.set()
                go_on.wait(60)
            return ask(requests)

        one._ask = slow
        task = fleet.calls(one, "r", 1, 4)[0]
        await asyncio.to_thread(began.wait, 60)
        task.cancel()
        closing = asyncio.create_task(one.aclose())
        await reached(lambda: one._is_ending)
        go_on.set()
        await closing
        await asyncio.get_running_loop().shutdown_default_executor()
        assert fleet.store._redis.hgetall("fanout:run:r:permits") == {}

    run(main())
