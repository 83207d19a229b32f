"""A worker learns the tokens of its models' prompts, with few round trips."""

from __future__ import annotations

import asyncio
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import astuple

from fanout.core.answer_shape import AnswerShape
from fanout.core.errors import BrokerError
from fanout.core.rate_limits import Rates
from fanout.core.records import Usage
from fanout.llm.base import LLMReply, LLMRequest, Turn
from workers.context.event_loop import LoopThread
from workers.context.limiter import Limiter
from workers.context.token_ratios import TokenRatios
from workers.context.worker_context import WorkerContext

# Two bytes a token, where the estimate says four.
PROMPT = "some words " * 40
USAGE = Usage(calls=1, input_tokens=len(PROMPT) // 2, output_tokens=5)


class CountingStore:
    def __init__(self, store):
        self.store = store
        self.trips = 0
        self.is_away = False

    def __getattr__(self, name):
        def step(*args, **kwargs):
            self.trips += 1
            if self.is_away:
                raise BrokerError("away")
            return getattr(self.store, name)(*args, **kwargs)

        return step


@pytest.fixture
def counting(store):
    return CountingStore(store)


async def see(ratios, calls, model="m"):
    for _ in range(calls):
        ratios.observe(model, LLMRequest(prompt=PROMPT), USAGE, elapsed_s=0.5)
        await asyncio.sleep(0)
    await ratios.flush()


def test_it_learns_and_others_learn_from_it(counting, store):
    async def learn():
        ratios = TokenRatios(counting)
        assert ratios.expected_tokens("m", LLMRequest(prompt=PROMPT)) == len(PROMPT) // 4
        await see(ratios, 100)
        assert ratios.expected_tokens("m", LLMRequest(prompt=PROMPT)) == pytest.approx(
            220, rel=0.02
        )
        other = TokenRatios(store)
        other.expected_tokens("m", LLMRequest(prompt=PROMPT))
        await other.flush()
        return other.expected_tokens("m", LLMRequest(prompt=PROMPT))

    assert asyncio.run(learn()) == pytest.approx(220, rel=0.02)
    assert counting.trips <= 6
    known = store.token_sums("m")
    assert (known.calls, known.output_tokens / known.answers) == (100, 5)
    assert known.elapsed_s == pytest.approx(50)


def test_of_many_calls_some_are_enough(counting, store):
    asyncio.run(see(TokenRatios(counting), 1_280))
    assert store.token_sums("m").calls == 256 + 1_024 / 32
    assert counting.trips <= 14


class Ending(WorkerContext):
    """The parts of a worker's process that keep what it has learnt."""

    loop: Any
    models: Any
    reports: Any
    admission: Any
    budgets: Any
    answers: Any
    __setattr__ = object.__setattr__

    def __init__(self, store: Any) -> None:
        self.loop = LoopThread()
        self.models = SimpleNamespace(limiter=SimpleNamespace(ratios=TokenRatios(store)))
        self.reports = SimpleNamespace(close=lambda: None)
        nothing = SimpleNamespace(aclose=partial(asyncio.sleep, 0))
        self.admission = self.budgets = nothing
        self.answers = SimpleNamespace(tell_counts=partial(asyncio.sleep, 0))


@pytest.mark.parametrize("ending", ["keep_learnt", "wind_up"])
def test_what_the_last_calls_have_shown_is_kept(store, ending):
    context = Ending(store)

    async def call():
        observe = context.models.limiter.ratios.observe
        observe("m", LLMRequest(prompt=PROMPT), USAGE, elapsed_s=0.5)

    context.loop.wait_for(call())
    getattr(context, ending)()
    assert store.token_sums("m").calls == 1
    context.loop.close()


def test_unknown_usage_teaches_nothing(counting):
    async def learn():
        ratios = TokenRatios(counting)
        for usage in (Usage(calls=1), Usage(calls=1, input_tokens=0)):
            ratios.observe("m", LLMRequest(prompt=PROMPT), usage, elapsed_s=0.1)
        await ratios.flush()

    asyncio.run(learn())
    assert not counting.trips


def test_without_the_server_calls_go_on(counting, store):
    async def learn():
        counting.is_away = True
        ratios = TokenRatios(counting)
        await see(ratios, 40)
        counting.is_away = False
        await see(ratios, 40)

    asyncio.run(learn())
    assert store.token_sums("m").calls == 40


def test_all_that_is_sent_counts(store):
    shape = AnswerShape({"type": "object"})
    plain = LLMRequest(prompt="x" * 400)
    turns = LLMRequest(prompt="x" * 400, turns=(Turn("y" * 400, "z" * 400),))
    system = LLMRequest(prompt="x" * 400, system="y" * 400)
    shaped = LLMRequest(prompt="x" * 400, shape=shape)

    async def count():
        ratios = TokenRatios(store)
        found = [ratios.expected_tokens("m", one) for one in (plain, turns, system, shaped)]
        await ratios.flush()
        return found

    one, three, two, more = asyncio.run(count())
    assert (one, three, two) == (100, 300, 200)
    assert more == pytest.approx(100 + len(shape.in_words) / 4, abs=1)


def test_the_limiter_books_what_was_learnt_and_corrects_by_it(store, monkeypatch):
    """Once learnt, the tokens booked before a call are those that it uses: nothing is corrected."""
    rates = Rates(tokens_per_minute=60_000_000)
    corrected = []
    request = LLMRequest(prompt=PROMPT, max_tokens=5)

    async def call():
        limiter = Limiter(store)

        def used(_rates, booked, actual):
            corrected.append(sum(astuple(actual)) - sum(astuple(booked)))

        monkeypatch.setattr(limiter.gate("m", rates)._model.pacer, "used", used)
        for _ in range(70):
            gate = limiter.gate("m", rates)
            await gate.enter(request, left_s=9.0)
            await gate.leave(request, LLMReply(text="x", usage=USAGE), None)
        await limiter.ratios.flush()

    asyncio.run(call())
    assert corrected[0] == len(PROMPT) // 4
    assert abs(corrected[-1]) <= 3
