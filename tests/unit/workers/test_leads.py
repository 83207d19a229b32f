"""One call ahead of those whose prompts begin as its own."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from fanout.core.errors import BrokerError
from workers.context import leads as module
from workers.context.admission import AdmissionClosedError
from workers.context.leads import Leads


class Store:
    """What processes of a fleet share."""

    def __init__(self):
        self.keys = {}
        self.asked = 0
        self.is_away = False

    def claim_prefixes(self, keys, *, lasts_s):
        assert lasts_s > 0
        self.asked += 1
        if self.is_away:
            raise BrokerError("away")
        said = []
        for key in keys:
            said.append({None: "first", True: "warm", False: "wait"}[self.keys.get(key)])
            self.keys.setdefault(key, False)
        return said

    def note_prefixes(self, answered, *, lasts_s):
        assert lasts_s > 0
        if self.is_away:
            raise BrokerError("away")
        for key, is_answered in answered.items():
            if is_answered:
                self.keys[key] = True
            else:
                self.keys.pop(key, None)


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


_threads: list[ThreadPoolExecutor] = []


def run(scenario, *, store=None):
    async def whole():
        with ThreadPoolExecutor(1) as threads:
            _threads[:] = [threads]
            clock, shared = Clock(), store or Store()
            made = [Leads(shared, threads, clock=clock, sleep=asyncio.sleep) for _ in range(2)]
            await asyncio.wait_for(scenario(made, clock, shared), 90)

    asyncio.run(whole())


async def settled():
    """Give all that can go on the time for it, the thread of the store as well."""
    for _ in range(10):
        await asyncio.get_running_loop().run_in_executor(_threads[-1], int)
        for _ in range(5):
            await asyncio.sleep(0.001)


async def until(condition):
    while not condition():  # noqa: ASYNC110 - of any kind
        await asyncio.sleep(0.001)


class Branches:
    """Branches that have been let through, by their names."""

    def __init__(self):
        self.leads = {}
        self.tasks = []

    def begin(self, leads, name, *prefixes):
        async def enter():
            self.leads[name] = await leads.enter(prefixes)

        task = asyncio.create_task(enter())
        self.tasks.append(task)
        return task

    @property
    def inside(self):
        return sorted(self.leads)


def test_siblings_follow_when_the_first_has_its_answer():
    async def scenario(made, _clock, _store):
        leads, branches = made[0], Branches()
        for name in "abc":
            branches.begin(leads, name, "x")
        branches.begin(leads, "other", "y")
        await until(lambda: len(branches.leads) == 2)
        assert branches.inside == ["a", "other"]
        assert leads.waiting == 2
        branches.leads["a"].calls()
        await settled()
        assert branches.inside == ["a", "other"]
        branches.leads["a"].answered()
        await asyncio.gather(*branches.tasks)
        assert leads.waiting == 0
        # Later ones wait for nothing.
        await branches.begin(leads, "late", "x")

    run(scenario)


def test_a_first_branch_without_an_answer_leaves_its_part_to_the_next_one():
    async def scenario(made, _clock, store):
        leads, branches = made[0], Branches()
        for name in "abc":
            branches.begin(leads, name, "x")
        await until(lambda: branches.leads)
        with branches.leads["a"]:
            pass
        await until(lambda: len(branches.leads) == 2)
        assert branches.inside == ["a", "b"]
        branches.leads["b"].answered()
        await asyncio.gather(*branches.tasks)
        # The last one frees the prefix for the fleet.
        await branches.begin(leads, "d", "z")
        branches.leads["d"].ends()
        await until(lambda: list(store.keys.values()) == [True])

    run(scenario)


def test_a_failed_call_lets_the_next_one_go_ahead():
    async def scenario(made, _clock, _store):
        leads, branches = made[0], Branches()
        for name in "abc":
            branches.begin(leads, name, "x")
        await until(lambda: branches.leads)
        branches.leads["a"].calls()
        branches.leads["a"].ends()
        await until(lambda: len(branches.leads) == 2)
        assert branches.leads["b"].led == ["x"]
        # It is made again, and is answered first.
        branches.leads["a"].calls()
        branches.leads["a"].answered()
        await asyncio.gather(*branches.tasks)

    run(scenario)


def test_a_cancelled_branch_holds_up_nobody():
    async def scenario(made, _clock, _store):
        leads, branches = made[0], Branches()
        first, second, third = (branches.begin(leads, name, "x") for name in "abc")
        await first
        second.cancel()
        branches.leads["a"].ends()
        # Also where its turn comes as it is cancelled.
        await third
        fourth, fifth = branches.begin(leads, "d", "x"), branches.begin(leads, "e", "x")
        await settled()
        branches.leads["c"].ends()
        fourth.cancel()
        await fifth
        assert leads.waiting == 0

    run(scenario)


def test_a_long_call_does_not_hold_up_its_siblings(monkeypatch):
    monkeypatch.setattr(module, "_PROCESSED_S", 0.01)

    async def scenario(made, _clock, _store):
        leads, branches = made[0], Branches()
        first, second = branches.begin(leads, "a", "x"), branches.begin(leads, "b", "x")
        await first
        branches.leads["a"].calls()
        await second

    run(scenario)


def test_nobody_waits_for_longer_than_that_is_worth(monkeypatch):
    monkeypatch.setattr(module, "_LONGEST_S", 0.02)

    async def scenario(made, _clock, _store):
        leads, branches = made[0], Branches()
        for name in "abc":
            branches.begin(leads, name, "x")
        await asyncio.gather(*branches.tasks)
        assert leads.waiting == 0

    run(scenario)


def test_the_provider_forgets_a_prefix():
    async def scenario(made, clock, store):
        leads, branches = made[0], Branches()
        await branches.begin(leads, "a", "x")
        branches.leads["a"].answered()
        await until(lambda: list(store.keys.values()) == [True])
        clock.now += 239
        await branches.begin(leads, "b", "x")
        # A call that reads it keeps it alive.
        branches.leads["b"].answered()
        clock.now += 239
        await branches.begin(leads, "c", "x")
        clock.now += 241
        store.keys.clear()
        await branches.begin(leads, "d", "x")
        assert branches.leads["d"].led == ["x"]
        assert branches.leads["c"].led == []

    run(scenario)


def test_a_branch_waits_for_the_shorter_prefix_first():
    async def scenario(made, _clock, _store):
        leads, branches = made[0], Branches()
        for name, chunk in (("a", "c0"), ("b", "c0"), ("c", "c1")):
            branches.begin(leads, name, "system", chunk)
        await until(lambda: branches.leads)
        await settled()
        assert branches.inside == ["a"]
        assert branches.leads["a"].led == ["system", "c0"]
        branches.leads["a"].answered()
        await asyncio.gather(*branches.tasks)
        assert branches.leads["c"].led == ["c1"]

    run(scenario)


def test_the_processes_of_a_fleet_have_one_call_ahead():
    async def scenario(made, _clock, _store):
        here, there = made
        branches = Branches()
        await branches.begin(here, "a", "x")
        for name in "bc":
            branches.begin(there, name, "x")
        await settled()
        assert branches.inside == ["a"]
        assert there.waiting == 2
        branches.leads["a"].answered()
        await asyncio.gather(*branches.tasks)
        assert branches.leads["b"].led == []

    run(scenario)


def test_a_process_that_died_is_not_waited_for():
    async def scenario(made, _clock, store):
        here, there = made
        branches = Branches()
        await branches.begin(here, "a", "x")
        waiting = branches.begin(there, "b", "x")
        await settled()
        # The claim lapses.
        store.keys.clear()
        await waiting
        assert branches.leads["b"].led == ["x"]

    run(scenario)


def test_without_the_server_each_process_has_its_own_call_ahead():
    async def scenario(made, _clock, store):
        here, there = made
        branches = Branches()
        store.is_away = True
        await branches.begin(here, "a", "x")
        await branches.begin(there, "b", "x")
        second = branches.begin(here, "c", "x")
        await settled()
        assert branches.inside == ["a", "b"]
        branches.leads["a"].answered()
        await second
        branches.leads["b"].ends()
        await settled()

    run(scenario)


def test_a_worker_that_stops_lets_nobody_wait():
    async def scenario(made, _clock, _store):
        here, there = made
        branches = Branches()
        await branches.begin(here, "a", "x")
        waiting = [branches.begin(here, "b", "x"), branches.begin(there, "c", "x")]
        await settled()
        here.close()
        there.close()
        for each in waiting:
            with pytest.raises(AdmissionClosedError):
                await each
        with pytest.raises(AdmissionClosedError):
            await here.enter(["z"])
        assert here.waiting == there.waiting == 0

    run(scenario)


def test_many_prefixes_take_little_memory(monkeypatch):
    monkeypatch.setattr(module, "_REMEMBERED", 2)

    async def scenario(made, _clock, _store):
        leads, branches = made[0], Branches()
        await branches.begin(leads, "a", "x")
        left = branches.begin(leads, "b", "x")
        await settled()
        for name in "cde":
            await branches.begin(leads, name, name)
        await left
        assert len(leads._families) == 2

    run(scenario)


def test_prefixes_share_round_trips():
    async def scenario(made, _clock, store):
        leads, branches = made[0], Branches()
        for number in range(50):
            branches.begin(leads, str(number), f"chunk {number}")
        await asyncio.gather(*branches.tasks)
        assert store.asked < 10

    run(scenario)
