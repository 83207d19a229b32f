"""A worker learns the tokens of its models' prompts, with few round trips."""

from __future__ import annotations

import asyncio
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import astuple, replace

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
REPLY = LLMReply(text="x" * 20, usage=USAGE)


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
        ratios.observe(model, LLMRequest(prompt=PROMPT), REPLY, elapsed_s=0.5)
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
        observe("m", LLMRequest(prompt=PROMPT), REPLY, elapsed_s=0.5)

    context.loop.wait_for(call())
    getattr(context, ending)()
    assert store.token_sums("m").calls == 1
    context.loop.close()


def test_unknown_usage_teaches_nothing(counting):
    async def learn():
        ratios = TokenRatios(counting)
        for usage in (Usage(calls=1), Usage(calls=1, input_tokens=0)):
            reply = LLMReply(text="x", usage=usage)
            ratios.observe("m", LLMRequest(prompt=PROMPT), reply, elapsed_s=0.1)
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


WRONG = [
    pytest.param({"input_tokens": 10**9}, id="prompt"),
    pytest.param({"output_tokens": 10**9}, id="answer"),
    pytest.param({"input_tokens": 10**9, "output_tokens": 10**9}, id="both"),
    pytest.param({"input_tokens": 20_000}, id="prompt that has more tokens than bytes"),
    pytest.param({"output_tokens": 20_000}, id="answer that has more tokens than bytes"),
    pytest.param({"output_tokens": 10**9, "reasoning_tokens": 10**9}, id="reasoning"),
]


def wrong_reply(wrong):
    return LLMReply(text="x" * 20, usage=replace(USAGE, **wrong))


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("right", [0, 30])
def test_a_count_that_no_call_has_changes_no_estimate(store, wrong, right):
    request = LLMRequest(prompt=PROMPT)

    async def learn():
        ratios = TokenRatios(store)
        await see(ratios, right)
        ratios.observe("m", request, wrong_reply(wrong), elapsed_s=0.5)
        await ratios.flush()
        return ratios.expected_tokens("m", request)

    assert asyncio.run(learn()) <= len(PROMPT) // 2
    known = store.token_sums("m")
    assert known.output_tokens == 5 * known.answers


@pytest.mark.parametrize("field", ["input_tokens", "output_tokens"])
def test_an_impossible_count_is_not_learnt_from_though_all_replies_have_it(store, field):
    """No model of an unknown window has so many tokens in one call."""
    request = LLMRequest(prompt=PROMPT)

    async def learn():
        ratios = TokenRatios(store)
        for _ in range(40):
            ratios.observe("m", request, wrong_reply({field: 10**9}), elapsed_s=0.5)
        await ratios.flush()
        return ratios.expected_tokens("m", request)

    assert asyncio.run(learn()) <= len(PROMPT) // 2
    assert store.token_sums("m").output_tokens <= 40 * 5


def test_the_text_that_a_server_adds_to_all_prompts_is_learnt(store):
    request = LLMRequest(prompt=PROMPT)

    async def learn():
        ratios = TokenRatios(store)
        for _ in range(40):
            ratios.observe("m", request, wrong_reply({"input_tokens": 3_000}), elapsed_s=0.5)
        await ratios.flush()
        return ratios.expected_tokens("m", request)

    assert asyncio.run(learn()) > 2 * len(PROMPT)


def test_reasoning_that_is_counted_without_a_word_is_learnt(store):
    request = LLMRequest(prompt=PROMPT)

    async def learn():
        ratios = TokenRatios(store)
        for _ in range(40):
            ratios.observe("m", request, wrong_reply({"output_tokens": 2_000}), elapsed_s=0.5)
        await ratios.flush()

    asyncio.run(learn())
    known = store.token_sums("m")
    assert known.answers >= 35
    assert known.output_tokens == 2_000 * known.answers


@pytest.mark.parametrize("wrong", WRONG)
def test_a_count_that_no_call_has_keeps_no_calls_waiting(store, monkeypatch, wrong):
    rates = Rates(tokens_per_minute=100_000)
    request = LLMRequest(prompt=PROMPT, max_tokens=5)
    corrected = []

    async def call():
        limiter = Limiter(store)
        gate = limiter.gate("m", rates)
        monkeypatch.setattr(gate._model.pacer, "used", lambda *args: corrected.append(args))
        await gate.enter(request, left_s=9.0)
        await gate.leave(request, wrong_reply(wrong), None)
        await limiter.ratios.flush()

    asyncio.run(call())
    assert not corrected
