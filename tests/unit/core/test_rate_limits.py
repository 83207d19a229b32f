"""The arithmetic of rate limits, and how calls meet them."""

from __future__ import annotations

import asyncio
import time

import pytest

from fanout.core.errors import BrokerError, LLMError
from fanout.core.rate_limits import BURST_S, MAX_AHEAD_S, MAX_BLOCK_S, LimitState, Rates, take
from fanout.core.records import ErrorKind, Usage
from fanout.core.spec import RetrySpec
from fanout.llm import FakeLLM, LLMReply, LLMRequest
from fanout.llm.calls import complete_with_retries
from fanout.stores import MemoryStore
from workers.context.limiter import Limiter

NOW = 1_000.0


def book(state: LimitState, times: int, *, now=NOW, request_s=0.0, tokens_s=0.0):
    """Take slots one after the other; return when each may begin, and what is used."""
    starts = []
    for _ in range(times):
        slot, state = take(state, now=now, request_s=request_s, tokens_s=tokens_s)
        starts.append((slot.wait_s, slot.is_taken))
    return starts, state


def test_slots_are_spaced_behind_what_an_idle_second_leaves():
    starts, _ = book(LimitState(), 5, request_s=0.5)
    assert starts == [(0, True), (0, True), (0, True), (0.5, True), (1.0, True)]


def test_over_a_long_time_the_rate_holds():
    state, begun, now = LimitState(), [], NOW
    while now < NOW + 600:
        slot, state = take(state, now=now, request_s=0.25, tokens_s=0.0)
        now += slot.wait_s
        begun.append(now)
    assert len(begun) == pytest.approx(600 / 0.25 + BURST_S / 0.25, abs=2)


def test_the_slower_of_two_limits_decides():
    starts, _ = book(LimitState(), 3, request_s=0.1, tokens_s=4.0)
    assert [wait for wait, _ in starts] == [0, 3, 7]


def test_a_limit_that_is_not_asked_for_does_not_hold_up():
    state = LimitState(requests_until=NOW + 100, tokens_until=NOW + 100)
    assert book(state, 1)[0] == [(0, True)]


def test_nothing_is_booked_far_ahead():
    state = LimitState(requests_until=NOW + MAX_AHEAD_S + 3)
    (slot,), after = book(state, 1, request_s=1)
    assert slot == (pytest.approx(MAX_AHEAD_S + 2 - MAX_AHEAD_S / 2), False)
    assert after == state


def test_behind_a_pause_slots_are_spaced_too():
    starts, _ = book(LimitState(blocked_until=NOW + 4), 4, request_s=1.0)
    assert [wait for wait, _ in starts] == [4, 4, 5, 6]


def test_rates_are_per_minute():
    rates = Rates(requests_per_minute=120, tokens_per_minute=6_000)
    assert (rates.request_s(), rates.tokens_s(50)) == (0.5, 0.5)
    assert (Rates().request_s(), Rates().tokens_s(50), Rates().is_limited) == (0, 0, False)


class Worker:
    """A worker's limiter whose waits take no time, but its own; they are remembered."""

    def __init__(self, store) -> None:
        self.waits: list[float] = []
        self._now = 0.0
        self.limiter = Limiter(store, clock=self._clock, sleep=self._sleep)

    def _clock(self) -> float:
        return self._now + time.monotonic()

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self._now += seconds


def call(limiter, llm, rates=None, **request):
    """Make a call through the gate of a run."""
    return complete_with_retries(
        llm,
        LLMRequest(**{"prompt": "p" * 40, **request}),
        policy=RetrySpec(max_attempts=2, base_wait_s=0),
        timeout_s=5,
        gate=limiter.gate("m", rates or Rates()),
        sleep=lambda _: asyncio.sleep(0),
    )


def test_a_refusal_makes_other_workers_wait():
    store = MemoryStore()
    error = LLMError(ErrorKind.RATE_LIMITED, "slow down", retry_after_s=0.3)
    script = iter([error, "yes"])
    started = time.monotonic()
    first = asyncio.run(call(Limiter(store), FakeLLM(script=lambda _: next(script))))
    assert (first.output, first.attempts) == ("yes", 2)
    assert time.monotonic() - started >= 0.3
    store.pause_model("m", 0.3)
    started = time.monotonic()
    second = asyncio.run(call(Limiter(store), FakeLLM()))
    # It waits for what another has found out, before its first call and at no cost to it.
    assert second.attempts == 1
    assert time.monotonic() - started >= 0.3
    assert second.elapsed_s < 0.3


def test_a_pause_is_not_believed_for_ever():
    store = MemoryStore()
    asyncio.run(Limiter(store).refused("m", 86_400.0))
    assert store.pause_of("m").wait_s == pytest.approx(MAX_BLOCK_S, abs=1)


def test_what_is_waited_for_a_slot_is_no_latency():
    worker = Worker(MemoryStore())
    rates = Rates(requests_per_minute=30)

    async def calls():
        return [await call(worker.limiter, FakeLLM(), rates) for _ in range(3)]

    results = asyncio.run(calls())
    assert sum(worker.waits) >= 3
    assert all(result.elapsed_s < 1 for result in results)


def test_tokens_are_booked_ahead_and_corrected_by_the_answer():
    store = MemoryStore()
    rates = Rates(tokens_per_minute=60)
    usage = Usage(calls=1, input_tokens=4, output_tokens=1)
    llm = FakeLLM(script=lambda _: LLMReply(text="yes", usage=usage))
    # 10 tokens of prompt and 20 for the answer are booked; 5 were used.
    asyncio.run(call(Limiter(store), llm, rates, max_tokens=20))
    assert store.limits()["m"].tokens_until == pytest.approx(5, abs=0.5)


@pytest.mark.parametrize("rates", [Rates(), Rates(requests_per_minute=60_000)])
def test_tokens_that_are_not_limited_are_not_counted(monkeypatch, rates):
    def counted(text):
        raise AssertionError("nobody has asked")

    monkeypatch.setattr("workers.context.limiter.estimate_tokens", counted)
    result = asyncio.run(call(Limiter(MemoryStore()), FakeLLM(answer="hi"), rates))
    assert result.output == "hi"


def test_a_store_that_is_away_is_asked_again():
    store = MemoryStore()
    answers = iter([BrokerError("away"), BrokerError("away")])
    take_slot = store.take_slot

    def flaky(*args, **kwargs):
        error = next(answers, None)
        if error is not None:
            raise error
        return take_slot(*args, **kwargs)

    store.take_slot = flaky
    result = asyncio.run(call(Worker(store).limiter, FakeLLM(), Rates(requests_per_minute=60)))
    assert result.attempts == 1
    assert store.limits()["m"].requests_until > 0
