"""Rate limits, as calls meet them."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from fanout.core.errors import BrokerError, LLMError
from fanout.core.rate_limits import MAX_BLOCK_S, Rates
from fanout.core.records import ErrorKind, Usage
from fanout.core.spec_fields import RetrySpec
from fanout.llm import FakeLLM, LLMReply, LLMRequest
from fanout.llm.calls import complete_with_retries
from workers.context.limiter import Limiter


def test_rates_are_per_minute():
    rates = Rates(requests_per_minute=120, tokens_per_minute=6_000)
    assert (rates.request_s(), rates.tokens_s(50)) == (0.5, 0.5)
    assert (Rates().request_s(), Rates().tokens_s(50), Rates().is_limited) == (0, 0, False)


class Worker:
    """A worker's limiter whose waits take no time, but its own and its server's; they are remembered."""

    def __init__(self, store, server=None) -> None:
        self.waits: list[float] = []
        self._now = 0.0
        self._server = server
        self.limiter = Limiter(store, clock=self._clock, sleep=self._sleep)

    def _clock(self) -> float:
        return self._now + time.monotonic()

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self._now += seconds
        if self._server is not None:
            self._server.now += seconds


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


def test_a_refusal_makes_other_workers_wait(store):
    error = LLMError(ErrorKind.RATE_LIMITED, "slow down", retry_after_s=0.3)
    script = iter([error, "yes"])
    started = time.monotonic()
    first = asyncio.run(call(Limiter(store), FakeLLM(script=lambda _: next(script))))
    assert (first.output, first.attempts) == ("yes", 2)
    assert time.monotonic() - started >= 0.3
    store.pause_model("m", 300)
    other = Worker(store)
    second = asyncio.run(call(other.limiter, FakeLLM()))
    # It waits for what another has found out, before its first call and at no cost to it.
    assert second.attempts == 1
    assert sum(other.waits) > 200
    assert second.elapsed_s < 60


def test_no_call_begins_before_the_pause_was_read_for_the_first_time(store, monkeypatch):
    store.pause_model("m", 30)
    begun, read = threading.Event(), store.pause_of

    def slow(name):
        assert begun.wait(60)
        return read(name)

    monkeypatch.setattr(store, "pause_of", slow)
    worker = Worker(store)

    async def calls():
        tasks = [asyncio.ensure_future(call(worker.limiter, FakeLLM())) for _ in range(5)]
        for _ in range(20):
            # All of them come to the gate while the first reads.
            await asyncio.sleep(0)
        begun.set()
        await asyncio.gather(*tasks)

    asyncio.run(calls())
    assert sum(wait > 0 for wait in worker.waits) >= 5, "each has waited for the end of the pause"


def test_a_pause_is_not_believed_for_ever(store):
    gate = Limiter(store).gate("m", Rates())
    refusal = LLMError(ErrorKind.RATE_LIMITED, "later", retry_after_s=86_400.0)
    asyncio.run(gate.leave(LLMRequest(prompt="p"), None, refusal))
    assert store.pause_of("m").wait_s == pytest.approx(MAX_BLOCK_S, abs=1)


def test_what_is_waited_for_a_slot_is_no_latency(store, server_clock):
    worker = Worker(store, server_clock)
    rates = Rates(requests_per_minute=1)

    async def calls():
        return [await call(worker.limiter, FakeLLM(), rates) for _ in range(3)]

    results = asyncio.run(calls())
    assert sum(worker.waits) >= 90
    assert all(result.elapsed_s < 30 for result in results)


def test_tokens_are_booked_ahead_and_corrected_by_the_answer(store):
    rates = Rates(tokens_per_minute=60)
    usage = Usage(calls=1, input_tokens=4, output_tokens=1)
    llm = FakeLLM(script=lambda _: LLMReply(text="yes", usage=usage))

    corrected, correct = threading.Event(), store.correct_slot

    def correct_slot(*args, **kwargs):
        correct(*args, **kwargs)
        corrected.set()

    store.correct_slot = correct_slot

    async def calls():
        await call(Limiter(store), llm, rates, max_tokens=20)
        # 10 tokens of prompt and 20 for the answer are booked; 5 were used.
        assert store.limits()["m"].tokens_ahead_s == pytest.approx(30, abs=2)
        assert await asyncio.to_thread(corrected.wait, 10)

    asyncio.run(calls())
    assert store.limits()["m"].tokens_ahead_s == pytest.approx(5, abs=2)


@pytest.mark.parametrize("rates", [Rates(), Rates(requests_per_minute=60_000)])
def test_tokens_that_are_not_limited_are_not_counted(store, monkeypatch, rates):
    def counted(*_args):
        raise AssertionError("nobody has asked")

    monkeypatch.setattr("workers.context.token_ratios.TokenRatios.expected_tokens", counted)
    result = asyncio.run(call(Limiter(store), FakeLLM(answer="hi"), rates))
    assert result.output == "hi"


def test_a_store_that_is_away_is_asked_again(store):
    answers = iter([BrokerError("away"), BrokerError("away")])
    reserve_calls = store.reserve_calls

    def flaky(*args, **kwargs):
        error = next(answers, None)
        if error is not None:
            raise error
        return reserve_calls(*args, **kwargs)

    store.reserve_calls = flaky
    result = asyncio.run(call(Worker(store).limiter, FakeLLM(), Rates(requests_per_minute=60)))
    assert result.attempts == 1
    assert store.limits()["m"].requests_ahead_s > 0
