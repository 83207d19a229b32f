"""A branch that has room for a call never waits for ever for a place, nor the other way round."""

from __future__ import annotations

import asyncio
from collections import deque
from types import SimpleNamespace

import pytest

from fanout.core.errors import LLMError
from fanout.core.rate_limits import Rates
from fanout.core.records import ErrorKind
from fanout.llm import LLMRequest
from fanout.llm.base import LLMReply
from workers.branch import claims
from workers.branch.claims import Claim
from workers.branch.delivery_ends import BranchHandedBack
from workers.branch.places import Place
from workers.context import held_places
from workers.context.admission import Admission
from workers.context.admitted_run import AdmittedRun
from workers.context.budget_gate import BudgetGate
from workers.context.limiter import Limiter

REQUEST = LLMRequest(prompt="p")
REPLY = LLMReply(text="yes")


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(held_places, "KEEPS_PLACE_S", 0.01)


class NotedClaim(Claim):
    """A claim without a store that notes how often its branch was asked to leave its place."""

    def __init__(self, place, name, asked):
        self.place = place
        self._name = name
        self._asked = asked

    def leaves_place(self, *, in_outage=False):
        """See HeldPlace."""
        self._asked.append((self._name, has_left := super().leaves_place(in_outage=in_outage)))
        return has_left


class Process:
    """A worker process with one place; its branches make one call each."""

    def __init__(self, store):
        self.limiter = Limiter(store)
        self.model = self.limiter.gate("m", Rates())._model
        self.admission = Admission(lambda requests: [None] * len(requests), sure_s=9)
        self.admission.places = 1
        self.called = []
        # The branches that waited so long that they were to leave their places, and whether they did.
        self.asked = []
        self.most = self.in_flight = 0

    def spec(self, _run_id):
        return SimpleNamespace(max_workers=None, priority=1.0)

    def branch(self, name, *, budget=None, calls=1, ends=None):
        """Begin a branch, whose calls last until an event, or 2 ms."""
        return asyncio.create_task(self._branch(name, budget, calls, ends))

    async def _branch(self, name, budget, calls, ends):
        runs = SimpleNamespace(specs=SimpleNamespace(known=self.spec, ready=self.spec))
        context = SimpleNamespace(admission=self.admission, runs=runs)
        async with Place(context, "r", lambda: None, None) as place:
            claim = NotedClaim(place, name, self.asked)
            with self.limiter.gate("m", Rates(), place=claim) as gate:
                whole = gate if budget is None else BudgetGate(budget, gate, claim)
                for _ in range(calls):
                    await whole.enter(REQUEST, left_s=60)
                    self.in_flight += 1
                    self.most = max(self.most, self.in_flight)
                    await (asyncio.sleep(0.002) if ends is None else ends.wait())
                    self.in_flight -= 1
                    self.called.append(name)
                    await whole.leave(REQUEST, REPLY, None)
                    if calls > 1:
                        place.leave_for_now()

    async def until(self, condition):
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110 - it looks at plain values
                await asyncio.sleep(0.002)

    def opens(self, share):
        self.model.places.share = share
        self.model.places._admit()


async def has_ended(*branches):
    await asyncio.wait_for(asyncio.gather(*branches), 60)


@pytest.mark.parametrize("lasts", [True, False], ids=["outage goes on", "it is over"])
def test_who_has_a_place_in_an_outage_leaves_it_to_one_that_has_room(store, lasts):
    """The first waits for the window when the outage begins, and then has room; the second a place."""

    async def run():
        process = Process(store)
        process.opens(0)
        first = process.branch("first")
        await process.until(lambda: process.admission.away == 1)
        now = process.limiter.clock()
        process.model.fell(now, now)
        if lasts:
            # The first is let through as the probe.
            store.trip_breaker("m")
            process.model.looked_at, process.model.is_read, process.model.probes = now, True, 1
        second = process.branch("second")
        await process.until(lambda: process.asked.count(("second", False)) >= 3)
        # Others in its place would wait as well.
        assert ("second", True) not in process.asked
        assert process.admission.away == 1
        process.opens(1)
        await has_ended(first, second)
        return process.called, process.most

    assert asyncio.run(run()) == (["first", "second"], 1)


def test_no_branch_keeps_its_place_for_an_outage_of_which_nobody_has_heard_for_long(store):
    async def run():
        process = Process(store)
        process.opens(0)
        process.model.fell(*[process.limiter.clock() - 60] * 2)
        branches = [process.branch(n) for n in range(3)]
        await process.until(lambda: process.admission.away == 3)
        process.opens(1)
        await has_ended(*branches)
        return len(process.called)

    assert asyncio.run(run()) == 3


@pytest.mark.parametrize("share", [0, None], ids=["window", "no window"])
def test_who_waits_for_a_budget_leaves_its_place_to_one_that_has_its_part(store, share):
    async def run():
        process, room = Process(store), asyncio.Event()

        async def reserve(_request):
            await room.wait()

        async def reserve_at_once(_request):
            return None

        process.opens(share)
        first = process.branch(
            "first", budget=SimpleNamespace(has_reserved=False, reserve=reserve_at_once)
        )
        if share == 0:
            await process.until(lambda: process.admission.away == 1)
        second = process.branch(
            "second", budget=SimpleNamespace(has_reserved=False, reserve=reserve)
        )
        if share == 0:
            process.opens(1)
        await has_ended(first)
        third = process.branch("third")
        await has_ended(third)
        room.set()
        await has_ended(second)
        return process.called, process.most

    assert asyncio.run(run()) == (["first", "third", "second"], 1)


def test_many_branches_pass_through_refusals_and_outages(store):
    """In 40 turns the window shrinks and grows, and the model falls and rises."""

    async def run():
        process = Process(store)
        process.admission.places = 3
        branches = [process.branch(n) for n in range(60)]
        for turn in range(40):
            process.opens((turn * 7) % 5)
            if turn % 6 == 5:
                now = process.limiter.clock()
                process.model.fell(now, now)
            moved = len(process.called) + len(process.asked)
            # Where all are away, nobody moves before the next turn.
            await process.until(
                lambda moved=moved: (
                    len(process.called) + len(process.asked) > moved
                    or process.admission.away + len(process.called) == len(branches)
                )
            )
        process.opens(2)
        await has_ended(*branches)
        return sorted(process.called), process.most, any(has_left for _, has_left in process.asked)

    called, most, has_left = asyncio.run(run())
    assert called == list(range(60))
    assert most <= 3
    assert has_left


def test_a_call_begins_when_its_branch_is_back(store):
    """Its time is that of the provider, and it counts as one of before or after an outage."""

    async def run():
        limiter, came, back = Limiter(store), asyncio.Event(), asyncio.Event()
        place = SimpleNamespace(is_away=True, leaves_place=lambda **_: True)

        async def takes_place(*, has_called):
            came.set()
            await back.wait()
            place.is_away = False

        place.takes_place = takes_place
        gate = limiter.gate("m", Rates(), place=place)
        entering = asyncio.create_task(gate.enter(REQUEST, left_s=60))
        await asyncio.wait_for(came.wait(), 60)
        at = limiter.clock()
        back.set()
        await entering
        began = gate._began
        await gate.leave(REQUEST, None, LLMError(ErrorKind.SERVER_ERROR, "no"))
        return began - at

    assert asyncio.run(run()) >= 0


def test_a_process_gives_back_the_branches_for_whose_calls_it_has_no_place(store, monkeypatch):
    """It took them while the window was narrow; now others of the fleet may have places for them."""
    monkeypatch.setattr(claims, "RETURNS_S", 0.03)

    async def run():
        process = Process(store)
        process.opens(0)
        ends = asyncio.Event()
        branches = [process.branch(n, ends=ends) for n in range(6)]
        await process.until(lambda: process.admission.away == 6)
        process.opens(4)
        await process.until(lambda: sum(branch.done() for branch in branches) == 5)
        ends.set()
        ended = await asyncio.wait_for(asyncio.gather(*branches, return_exceptions=True), 60)
        process.opens(None)
        await has_ended(process.branch("next"))
        kept = process.admission
        return process, [isinstance(one, BranchHandedBack) for one in ended], kept

    process, handed_back, admission = asyncio.run(run())
    assert process.called == [0, "next"]
    assert handed_back == [False] + [True] * 5
    assert (admission.away, admission.returning, process.model.places.in_flight) == (0, 0, 0)


def test_a_branch_that_has_called_is_not_given_back(store, monkeypatch):
    monkeypatch.setattr(claims, "RETURNS_S", 0)
    # None leaves its place before it has called.
    monkeypatch.setattr(held_places, "KEEPS_PLACE_S", 60)

    async def run():
        process = Process(store)
        branches = [process.branch(n, calls=2) for n in "abcd"]
        await has_ended(*branches)
        return "".join(process.called)

    assert asyncio.run(run()) == "ababcdcd"


@pytest.mark.parametrize(
    ("dropped", "order"), [("", "BDFACE"), ("B", "DFACE"), ("C", "BDFAE"), ("AF", "BDCE")]
)
def test_branches_that_come_back_take_turns_before_those_that_have_not_begun(dropped, order):
    async def run():
        admitted, whose = AdmittedRun("r", None, 1.0), {}
        for name in "ABCDEF":
            future = asyncio.get_running_loop().create_future()
            whose[future] = name
            admitted.add(future, is_back=name in "BDF")
        for future in [one for one, name in whose.items() if name in dropped]:
            admitted.drop(future)
            admitted.drop(future)
        return "".join(whose[admitted.pop()] for _ in order), admitted.waiting

    assert asyncio.run(run()) == (order, deque())


def test_waits_share_a_timer_and_each_is_asked_until_it_leaves():
    async def run():
        asked, has_left = [], asyncio.Event()

        def leaves(name, after):
            asked.append(name)
            if asked.count(name) < after:
                return False
            has_left.set()
            return True

        loop = asyncio.get_running_loop()
        with (
            held_places.LongWait(lambda: leaves("long", 3)),
            held_places.LongWait(lambda: leaves("once", 1)),
            held_places.LongWait(None),
        ):
            with held_places.LongWait(lambda: leaves("short", 1)):
                pass
            while asked.count("long") < 3:
                has_left.clear()
                await has_left.wait()
        return asked, dict(held_places._waits_on(loop)._due)

    asked, left = asyncio.run(asyncio.wait_for(run(), 60))
    assert sorted(asked) == ["long", "long", "long", "once"]
    assert left == {}
