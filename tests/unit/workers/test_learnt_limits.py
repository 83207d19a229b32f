"""Worker processes share the limits that they learn from headers and refusals."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from fanout.core.errors import BrokerError, LLMError
from fanout.core.rate_limits import Rates, SeenLimit, SeenLimits
from fanout.core.records import ErrorKind, Usage
from fanout.core.spec_fields import RetrySpec
from fanout.llm import FakeLLM, LLMReply, LLMRequest
from fanout.llm.calls import complete_with_retries
from fanout.policy.adaptive import WindowReport
from workers.context import model_gate, pacing
from workers.context.call_window import CallPlaces, plainly
from workers.context.limiter import Limiter

TIGHT = SeenLimits(requests=SeenLimit(limit=6_000, remaining=2_000, reset_s=40))
USAGE = Usage(calls=1, input_tokens=30, output_tokens=5)


def call(limiter, llm, rates=None, *, timeout_s=5.0):
    """Make a call through the gate of a branch."""
    gate = limiter.gate("m", rates or Rates(), timeout_s=timeout_s)
    return complete_with_retries(
        llm,
        LLMRequest(prompt="p" * 40),
        policy=RetrySpec(max_attempts=3, base_wait_s=0),
        timeout_s=timeout_s,
        gate=gate,
        sleep=lambda _: asyncio.sleep(0),
    )


@pytest.fixture
def trips(store, monkeypatch):
    """Count the requests of limits to the server."""
    counted = dict.fromkeys(("reserve_calls", "report_window", "put_learnt", "correct_slot"), 0)

    def spied(name, step, *args, **kwargs):
        counted[name] += 1
        return step(*args, **kwargs)

    for name in counted:
        monkeypatch.setattr(store, name, partial(spied, name, getattr(store, name)))
    return counted


def run_all(*coroutines):
    async def together():
        return await asyncio.gather(*coroutines)

    return asyncio.run(together())


def test_without_a_limit_no_call_asks_the_server(store, trips):
    limiter = Limiter(store)
    run_all(*(call(limiter, FakeLLM()) for _ in range(50)))
    assert set(trips.values()) == {0}


def test_a_limit_that_is_far_costs_one_note(store, trips):
    far = SeenLimits(requests=SeenLimit(limit=6_000, remaining=5_900, reset_s=1))
    llm = FakeLLM(script=lambda _: LLMReply(text="x", limits=far))
    limiter = Limiter(store)
    run_all(*(call(limiter, llm) for _ in range(50)))
    assert trips == {"reserve_calls": 0, "report_window": 0, "put_learnt": 1, "correct_slot": 0}
    assert store.limits()["m"].learnt == Rates(requests_per_minute=6_000)


def test_what_one_process_learns_paces_the_others(store, trips):
    llm = FakeLLM(script=lambda _: LLMReply(text="x", limits=TIGHT))
    run_all(call(Limiter(store), llm))
    assert trips["reserve_calls"] == 0
    assert store.limits()["m"].requests_ahead_s == 0
    other = Limiter(store)

    async def others():
        # The first call reads what the fleet knows.
        await call(other, FakeLLM())
        await asyncio.gather(*(call(other, FakeLLM()) for _ in range(30)))

    asyncio.run(others())
    assert store.limits()["m"].requests_ahead_s > 0
    # Calls of a tenth of a second share a request: 10 of them at this rate.
    assert 3 <= trips["reserve_calls"] <= 15


def test_a_told_limit_that_is_lower_wins(store):
    llm = FakeLLM(script=lambda _: LLMReply(text="x", limits=TIGHT, usage=USAGE))
    limiter = Limiter(store)
    told = Rates(requests_per_minute=600_000, tokens_per_minute=60_000)

    async def calls():
        for _ in range(5):
            await call(limiter, llm, told)
        return limiter.gate("m", told)._model.pacer.rates(told, limiter.clock())

    kept = asyncio.run(calls())
    assert kept.tokens_per_minute == 60_000
    assert kept.requests_per_minute == pytest.approx(3_000, rel=0.01)


class Refuses(FakeLLM):
    """Refuses all calls but so many at a time, and tells nothing."""

    def __init__(self, at_once: int) -> None:
        super().__init__()
        self.at_once, self.in_flight, self.refused, self.most = at_once, 0, 0, 0

    async def complete(self, request):
        if self.in_flight >= self.at_once:
            self.refused += 1
            raise LLMError(ErrorKind.RATE_LIMITED, "no", retry_after_s=0.01)
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        await asyncio.sleep(0.01)
        self.in_flight -= 1
        return LLMReply(text="x")


def test_refusals_open_a_window_that_the_fleet_keeps_to(store):
    llm = Refuses(6)

    async def fleet():
        limiters = [Limiter(store), Limiter(store)]
        results = await asyncio.gather(*(call(limiters[n % 2], llm) for n in range(60)))
        shown = store.limits()["m"].calls_at_once
        for limiter in limiters:
            await limiter.aclose()
        return results, shown

    results, shown = asyncio.run(asyncio.wait_for(fleet(), 60))
    assert {result.kind for result in results} == {None}
    assert llm.refused
    assert shown is not None


def places_of(limiter):
    return limiter.gate("m", Rates())._model.places


def open_window(store, size, *, member="else"):
    """Open a window of so many calls, which another process has."""
    report = WindowReport(process=member, in_flight=round(size / 0.75), refused_age_s=0.0)
    store.report_window("m", report)


async def until(is_so):
    for _ in range(12_000):
        if is_so():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came")


def test_a_call_waits_for_its_place_and_one_that_is_cancelled_leaves_it_to_the_next(store):
    async def calls():
        limiter = Limiter(store)
        places = places_of(limiter)
        places.share = 1
        await places.enter()
        waits = [asyncio.ensure_future(places.enter()) for _ in range(3)]
        await asyncio.sleep(0)
        waits[0].cancel()
        await asyncio.gather(waits[0], return_exceptions=True)
        assert places.in_flight == 1
        places.leave()
        await waits[1]
        assert not waits[2].done()
        # Cancelled in the moment in which it gets its place.
        places.leave()
        waits[2].cancel()
        await asyncio.gather(waits[2], return_exceptions=True)
        assert places.in_flight == 0
        await limiter.aclose()

    asyncio.run(calls())


def test_a_window_of_others_is_heard_of_and_ends(store):
    open_window(store, 3)

    async def calls():
        limiter = Limiter(store)
        await call(limiter, FakeLLM())
        places = places_of(limiter)
        await until(lambda: places._keeper is None)
        assert places.share is None
        await limiter.aclose()

    asyncio.run(calls())


def test_a_process_keeps_to_its_part_while_the_server_is_away(store, monkeypatch):
    open_window(store, 3)

    async def calls():
        limiter = Limiter(store)
        places = places_of(limiter)
        places.in_flight = 9
        places.heard()
        await until(lambda: places.share is not None)
        share = places.share

        def away(*_):
            raise BrokerError("away")

        monkeypatch.setattr(store, "report_window", away)
        assert await places._report()
        assert places.share == share
        await limiter.aclose()

    asyncio.run(calls())


def test_a_gate_that_is_closed_gives_its_place_back_once(store):
    async def calls():
        limiter = Limiter(store)
        gate = limiter.gate("m", Rates())
        await gate.enter(LLMRequest(prompt="p"), left_s=5)
        assert places_of(limiter).in_flight == 1
        gate.close()
        gate.close()
        assert places_of(limiter).in_flight == 0

    asyncio.run(calls())


def test_a_process_tells_how_many_calls_it_has_as_a_rule_if_none_succeeds_any_more(store):
    now = 1_000.0
    places = CallPlaces(store, "m", clock=lambda: now, until=plainly)
    assert places._news().usual == 0.0
    for _ in range(200):
        places.in_flight = 7
        places.succeeded(3.0, None, now=now)
    places.in_flight, now = 1, now + 5
    assert places._news().usual == 0.0
    now += 2
    assert places._news().usual == pytest.approx(8)


def test_slow_calls_open_a_window_before_they_time_out(store):
    async def calls():
        limiter = Limiter(store)
        places = places_of(limiter)
        for _ in range(40):
            places.in_flight += 1
        places.succeeded(1.0, 60.0, now=limiter.clock())
        assert places._keeper is None
        for _ in range(60):
            places.succeeded(45.0, 60.0, now=limiter.clock())
        await until(lambda: places.share is not None)
        assert 30 <= places.share < 40
        await limiter.aclose()

    asyncio.run(calls())


def test_reports_at_the_same_moment_all_count(store):
    def reports(name):
        for _ in range(20):
            told = WindowReport(process=name, in_flight=2, refused_age_s=0.0)
            assert store.report_window("m", told) is not None

    async def at_once():
        await asyncio.gather(*(asyncio.to_thread(reports, name) for name in "abc"))
        return store.report_window("m", WindowReport(process="a", in_flight=2))[0]

    assert set(asyncio.run(at_once()).members) == set("abc")


def test_what_a_lost_report_had_is_in_the_next():
    told = []

    class Away:
        """A server that takes the second report only."""

        def report_window(self, model, report):
            told.append(report)
            return None if len(told) == 1 else (None, 0.0)

    async def main():
        places = CallPlaces(Away(), "m", clock=lambda: 5.0, until=plainly)
        await places.enter()
        refusal = LLMError(ErrorKind.RATE_LIMITED, "slower")
        places.failed(refusal, began=3.0, is_paced=False, timeout_s=None)
        places.succeeded(2.0, None, now=5.0)
        await until(lambda: len(told) >= 2)
        await places.aclose()

    asyncio.run(main())
    assert [(each.done, each.busy_s, each.refused_age_s) for each in told[:2]] == [
        (1, 2.0, 2.0),
        (1, 2.0, 2.0),
    ]


def test_calls_that_wait_for_a_limit_go_on_when_it_turns_out_to_be_another(store, monkeypatch):
    monkeypatch.setattr(pacing, "_LONGEST_WAIT_S", 0.02)
    told = SeenLimit(limit=1, remaining=0, reset_s=0.001)
    limits = SeenLimits(requests=told, tokens=told)
    llm = FakeLLM(script=lambda _: LLMReply(text="x", limits=limits, usage=USAGE))
    limiter = Limiter(store)

    async def calls():
        async with asyncio.timeout(60):
            for _ in range(4):
                await asyncio.gather(*(call(limiter, llm) for _ in range(3)))

    asyncio.run(calls())
    assert store.limits()["m"].learnt == Rates(requests_per_minute=60e3, tokens_per_minute=60e3)


async def eventually(is_so):
    """Wait until something is so."""
    for _ in range(10_000):
        if is_so():
            return
        await asyncio.sleep(0.001)
    raise AssertionError


def test_many_refusals_in_a_row_are_none_at_random(store):
    places = CallPlaces(store, "m", clock=lambda: 0.0, until=plainly)
    places._has_noise = True
    refusal = LLMError(ErrorKind.RATE_LIMITED, "too many", status=429)

    async def calls():
        seen = []
        for _ in range(8):
            seen.append(places.has_noise)
            places.failed(refusal, began=0.0, is_paced=True, timeout_s=None)
        seen.append(places.has_noise)
        places.succeeded(1.0, None, now=0.0)
        seen.append(places.has_noise)
        await places.aclose()
        assert seen == [True] * 8 + [False, True]

    asyncio.run(calls())


def test_calls_that_were_held_back_together_keep_to_a_pace_that_is_known_by_then(
    store, monkeypatch
):
    monkeypatch.setattr(model_gate, "BURST_S", 0.0)
    limiter, begun = Limiter(store), []

    async def enters(gate):
        await gate.enter(LLMRequest(prompt="p"), left_s=60)
        begun.append(limiter.clock())

    async def calls():
        gates = [limiter.gate("m", Rates()) for _ in range(200)]
        model = limiter._models["m"]
        model.refused_until = limiter.clock() + 1
        tasks = [asyncio.create_task(enters(gate)) for gate in gates]
        await asyncio.sleep(0.02)
        model.places.pace = 600.0
        await eventually(lambda: begun)
        assert len(begun) < 50, "as many as in the burst of a second, not all"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(calls())
