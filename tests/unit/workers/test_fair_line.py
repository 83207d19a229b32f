"""Calls that wait for one model: the runs take turns, and nobody keeps a place from other runs."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from fanout.core.errors import BrokerError
from fanout.core.rate_limits import Rates
from fanout.llm import LLMRequest
from workers.branch.places import Place
from workers.context.admission import Admission
from workers.context.fair_line import FairLine, FairLock, Turn
from workers.context.limiter import Limiter
from workers.context.pacing import ask_store

REQUEST = LLMRequest(prompt="p")


@pytest.mark.parametrize(
    ("waiting", "served"),
    [
        ({"a": (6, 1.0), "b": (2, 1.0)}, "ababaaaa"),
        ({"a": (6, 1.0), "b": (4, 2.0)}, "babbabaaaa"),
        ({"a": (3, 1.0)}, "aaa"),
    ],
)
def test_runs_take_turns_by_their_weights(waiting, served):
    async def order():
        line, whose = FairLine(), {}
        for name, (count, weight) in waiting.items():
            for _ in range(count):
                whose[line.add(Turn(name, weight))] = name
        return "".join(whose[line.pop()] for _ in range(len(line))), len(line)

    found, left = asyncio.run(order())
    assert sorted(found) == sorted(served)
    assert (found[:6], left) == (served[:6], 0)


def test_a_run_that_comes_later_does_not_catch_up_on_what_it_missed():
    async def order():
        line, whose = FairLine(), {}
        whose |= {line.add(Turn("a")): "a" for _ in range(20)}
        begin = [whose[line.pop()] for _ in range(10)]
        whose |= {line.add(Turn("b")): "b" for _ in range(10)}
        return begin, [whose[line.pop()] for _ in range(6)]

    begin, then = asyncio.run(order())
    assert begin == ["a"] * 10
    assert then.count("b") == 3


def test_a_lock_survives_cancelled_calls():
    async def calls():
        lock, had = FairLock(), []

        async def call(name):
            async with lock.held(Turn(name)):
                had.append(name)
                await asyncio.sleep(0.001)

        tasks = [asyncio.create_task(call(name)) for name in "abcd"]
        await asyncio.sleep(0)
        tasks[2].cancel()
        # Cancelled in the moment in which it gets the lock.
        tasks[0].add_done_callback(lambda _: tasks[1].cancel())
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.wait_for(call("e"), 60)
        return had

    assert asyncio.run(calls())[-2:] == ["d", "e"]


def context_of(places):
    def spec(_run_id):
        return SimpleNamespace(max_workers=None, priority=1.0)

    admission = Admission(lambda requests: [None] * len(requests), sure_s=9)
    admission.places = places
    return SimpleNamespace(
        admission=admission, runs=SimpleNamespace(specs=SimpleNamespace(known=spec, ready=spec))
    )


def test_a_branch_that_waits_leaves_its_place_and_comes_back_before_those_that_have_not_begun():
    context, had = context_of(1), []

    async def branch(name):
        async with Place(context, "r", lambda: had.append(name), None) as place:
            if name == "a":
                place.leave_for_now()
                place.leave_for_now()
                assert context.admission.away == 1
                await asyncio.sleep(0)
                await place.enter()
                had.append("a again")
            await asyncio.sleep(0.001)

    async def branches():
        await asyncio.gather(*(branch(name) for name in "abcd"))

    asyncio.run(branches())
    assert had == ["a", "b", "a again", "c", "d"]
    assert (context.admission.away, context.admission._in_use) == (0, 0)


@pytest.mark.parametrize("places", [1, None])
def test_a_branch_that_ends_while_it_is_away_is_not_counted_any_more(places):
    context = context_of(places)

    async def branch():
        async with Place(context, "r", lambda: None, None) as place:
            place.leave_for_now()
            assert place.is_away == (places is not None), "a branch keeps its thread anyway"
            raise LookupError

    with pytest.raises(LookupError):
        asyncio.run(branch())
    assert (context.admission.away, context.admission._in_use) == (0, 0)


def block_window(limiter):
    limiter.gate("m", Rates())._model.places.share = 0


def block_rate(limiter):
    limiter.gate("m", Rates())._model.pacer._booking._is_held = True


def block_pause(limiter):
    limiter.gate("m", Rates())._model.refused_until = limiter.clock() + 60


@pytest.mark.parametrize("block", [block_window, block_rate, block_pause])
def test_a_call_that_waits_for_any_limit_says_so_soon(store, block):
    rates = Rates(requests_per_minute=600) if block is block_rate else Rates()

    async def waits():
        limiter, left = Limiter(store), asyncio.Event()
        block(limiter)
        place = SimpleNamespace(is_away=False, leaves_place=lambda **_: left.set() or True)
        gate = limiter.gate("m", rates, place=place)
        call = asyncio.create_task(gate.enter(REQUEST, left_s=60))
        await asyncio.wait_for(left.wait(), 50)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)

    asyncio.run(waits())


def test_a_server_that_is_away_is_told_of_once(caplog):
    def away():
        raise BrokerError("away")

    async def steps():
        return [await ask_store(away, f"cannot ask for m{n}") for n in range(9)]

    assert asyncio.run(steps()) == [None] * 9
    assert len(caplog.records) <= 1, "an earlier test may have had the one warning"
