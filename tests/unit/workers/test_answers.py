"""One call for identical branches of several worker processes, and what is kept of it."""

from __future__ import annotations

import asyncio

import pytest
from msgspec import structs

from fanout.core.answer_shape import shape_of
from fanout.core.errors import BrokerError
from fanout.core.kept_answers import AnswerSettled, KeptAnswer
from fanout.core.records import NO_CALL, ErrorKind, Usage
from fanout.core.settings import load_settings
from fanout.core.spec import make_spec
from fanout.llm.base import LLMRequest
from fanout.llm.calls import CallResult
from fanout.policy.progress import CallsSoFar
from fanout.stores import RedisStore
from fanout.stores.redis import answer_cache
from tests.fakes import InlineExecutor, fake_store
from workers.branch.answer_cache import CachedAnswer
from workers.context import answers as module
from workers.context.answers import Answers

USED = Usage(calls=2, input_tokens=10, output_tokens=3, cost_usd=0.5)
DONE = CallResult(
    output="yes", kind=None, message=None, attempts=2, usage=USED, elapsed_s=1.0, confidence=0.75,
    finish_reason="stop",
)  # fmt: skip
FAILED = CallResult(
    output=None, kind=ErrorKind.TIMEOUT, message="late", attempts=1, usage=USED, elapsed_s=1.0
)


@pytest.fixture
def store():
    store = fake_store()
    yield store
    store.close()


@pytest.fixture(autouse=True)
def _short_leases(monkeypatch, server_clock):
    """Leases lapse when a test has the time of the server pass, and not on a busy machine."""
    monkeypatch.setattr(module, "_LEAST_LEASE_S", 0.4)
    monkeypatch.setattr(module, "_LEASE_SHARE", 0.0)
    monkeypatch.setattr(module, "_POLL_S", 0.01)


def process(store):
    return Answers(
        store,
        load_settings(),
        InlineExecutor(),
        linger_s=lambda: 0.0,
        wait_for=asyncio.shield,
    )


async def until(is_met):
    """Wait for a condition."""
    async with asyncio.timeout(60):
        while not is_met():  # noqa: ASYNC110 - what it waits for sets no event
            await asyncio.sleep(0.005)


class Model:
    """Counts its calls: each ends as the next of `ends` says, the last one from then on.

    The first one takes `first_s` seconds, the others `takes_s`.
    """

    def __init__(self, *ends, takes_s=0.02, first_s=None):
        self.ends = list(ends) or [DONE]
        self.takes_s = takes_s
        self.first_s = takes_s if first_s is None else first_s
        self.calls = self.in_flight = self.most = 0

    async def __call__(self):
        self.calls += 1
        end = self.ends.pop(0) if len(self.ends) > 1 else self.ends[0]
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            await asyncio.sleep(self.first_s if self.calls == 1 else self.takes_s)
        finally:
            self.in_flight -= 1
        if isinstance(end, BaseException):
            raise end
        return end


def key_of_ask():
    cached = CachedAnswer(
        None,
        "m",
        LLMRequest(prompt="p"),
        make_spec(model="fake", prompt="p"),
        sample=0,
        wants_json=False,
        max_output_kb=100,
        so_far=None,
        attempt=None,
    )
    return cached.key


KEY = key_of_ask()


async def ask(answers, model, *, so_far=None, run="r1", **fields):
    fields = {"model": "fake", "prompt": "p", **fields}
    spec = make_spec(**fields)
    shape = shape_of(None, spec.choices)

    async def attempt():
        return run

    cached = CachedAnswer(
        answers,
        "m",
        LLMRequest(prompt="p", shape=shape),
        spec,
        sample=0,
        wants_json=False,
        max_output_kb=100,
        so_far=so_far,
        attempt=attempt,
    )
    result = await cached.get(model, lambda: None)
    if cached.settling is not None:
        await cached.settling
    return result


def test_many_branches_of_several_processes_make_one_call(store):
    model = Model(takes_s=0.2)

    async def run():
        fleet = [process(store) for _ in range(4)]
        found = await asyncio.gather(*(ask(one, model) for one in fleet for _ in range(25)))
        for one in fleet:
            await one.aclose()
        return found

    results = asyncio.run(run())
    assert model.calls == 1
    stats = store.cache_stats()
    saved_usd = sum(one.saved.cost_usd for one in results)
    assert (stats.hits, stats.misses) == (99, 1)
    assert stats.saved_usd == pytest.approx(saved_usd)
    assert {one.output for one in results} == {"yes"}
    [caller] = [one for one in results if not one.saved.calls]
    assert caller == DONE
    others = [one for one in results if one.saved.calls]
    expected = structs.replace(
        DONE, usage=NO_CALL, attempts=0, elapsed_s=0.0, saved=structs.replace(USED, calls=1)
    )
    assert others == [expected] * 99
    assert store.cache_stats().answers == 1


def test_nobody_waits_for_one_failure_after_the_other(store):
    model = Model(FAILED, takes_s=0.1)

    async def run():
        fleet = [process(store) for _ in range(2)]
        return await asyncio.gather(*(ask(one, model) for one in fleet for _ in range(10)))

    results = asyncio.run(run())
    assert results == [FAILED] * 20
    assert model.calls == 20
    assert model.most >= 9
    assert store.cache_stats().answers == 0


OWN = [
    structs.replace(FAILED, kind=kind, message="its own", finish_reason="why")
    for kind in (
        *(ErrorKind.TRUNCATED, ErrorKind.CONTEXT_LENGTH, ErrorKind.BAD_REQUEST),
        *(ErrorKind.CONTENT_FILTER, ErrorKind.INVALID_OUTPUT),
    )
]


@pytest.mark.parametrize("failed", OWN, ids=lambda result: result.kind.value)
def test_identical_branches_take_a_failure_that_theirs_would_have(store, failed):
    model = Model(failed, takes_s=0.2)
    taken = structs.replace(failed, attempts=0, usage=NO_CALL, elapsed_s=0.0)

    async def run():
        fleet = [process(store) for _ in range(3)]
        results = await asyncio.gather(
            *(ask(one, model, run=f"r{number}") for number, one in enumerate(fleet * 10))
        )
        assert model.calls == 1
        assert sorted(results, key=lambda one: -one.attempts) == [failed, *[taken] * 29]
        # The next one of a run that has shared it, in any process; it is counted nowhere.
        assert await ask(process(store), model, run="r0") == taken
        # A retry of the run, or another run, makes one call, which its branches share again.
        for attempt in ("r0 1.5", "another"):
            model.calls = 0
            fleet = [process(store) for _ in range(2)]
            results = await asyncio.gather(
                *(ask(one, model, run=attempt) for one in fleet for _ in range(5))
            )
            assert (model.calls, results.count(failed), results.count(taken)) == (1, 1, 9)

    asyncio.run(run())
    stats = store.cache_stats()
    assert (stats.answers, stats.hits, stats.saved_usd) == (0, 0, 0.0)


def test_a_failure_lives_for_seconds(store, server_clock):
    model = Model(OWN[0], takes_s=0)

    async def run():
        await ask(process(store), model)
        assert store._redis.exists(store._lease(KEY))
        server_clock.now += answer_cache.FREE_S + 0.1
        await ask(process(store), model)

    asyncio.run(run())
    assert model.calls == 2


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"stop_after": 1}, {}),
        ({"is_out_of_time": True}, {}),
        ({}, {"max_reasks": 3}),
        ({}, {"context_tokens": 9_000}),
        ({}, {"retries": {"max_attempts": 2}}),
    ],
)
def test_a_failure_that_may_not_come_again_is_not_shared(store, change, fields):
    model = Model(structs.replace(OWN[-1], **change), takes_s=0.1)

    async def run():
        one = process(store)
        await asyncio.gather(ask(one, model), *(ask(one, model, **fields) for _ in range(3)))

    asyncio.run(run())
    # Those with other terms share what comes of theirs.
    assert model.calls == (2 if fields else 4)


def test_an_answer_after_a_failure_is_kept(store):
    model = Model(FAILED, DONE)

    async def run():
        one = process(store)
        await asyncio.gather(*(ask(one, model) for _ in range(2)))
        return await ask(process(store), model)

    assert asyncio.run(run()).saved.calls == 1
    assert model.calls == 2


@pytest.mark.parametrize("are_same", [True, False], ids=["one process", "two"])
def test_another_branch_asks_where_the_first_is_stopped(store, are_same):
    model = Model(first_s=60)

    async def run():
        first = process(store)
        second = first if are_same else process(store)
        stopped = asyncio.ensure_future(ask(first, model))
        await until(lambda: model.calls == 1)
        waiting = [asyncio.ensure_future(ask(second, model)) for _ in range(5)]
        # Where it is another process, one of them looks into the store.
        await until(lambda: second.waiting == 5)
        stopped.cancel()
        results = await asyncio.gather(*waiting)
        assert stopped.cancelled()
        assert (first.waiting, second.waiting) == (0, 0)
        return results

    assert [one.output for one in asyncio.run(run())] == ["yes"] * 5
    assert model.calls == 2


def test_a_branch_that_is_stopped_while_it_waits_stops_no_other(store):
    model = Model()

    async def run():
        one, may_end = process(store), asyncio.Event()

        async def held():
            await may_end.wait()
            return await model()

        tasks = [asyncio.ensure_future(ask(one, held)) for _ in range(3)]
        await until(lambda: one.waiting == 2)
        tasks[1].cancel()
        await until(tasks[1].done)
        may_end.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, second, third = asyncio.run(run())
    assert (first.output, third.output) == ("yes", "yes")
    assert isinstance(second, asyncio.CancelledError)
    assert model.calls == 1


def test_where_the_caller_dies_one_of_the_others_asks(store, server_clock):
    dead = process(store)
    model = Model()

    async def run():
        # It has the lease, and does nothing more.
        await dead.found(dead.begin(KEY), until=1e9, on_wait=lambda: None)
        dead._renewer.cancel()
        fleet = [process(store) for _ in range(3)]
        waiting = [asyncio.ensure_future(ask(one, model)) for one in fleet for _ in range(3)]
        await until(lambda: sum(one.waiting for one in fleet) == 9)
        assert model.calls == 0
        server_clock.now += 0.5
        return await asyncio.gather(*waiting)

    assert [one.output for one in asyncio.run(run())] == ["yes"] * 9
    assert model.calls == 1


def test_others_wait_for_a_call_that_takes_longer_than_a_lease(store, server_clock):
    model, lease = Model(), store._lease(KEY)

    async def run():
        fleet, may_end = [process(store) for _ in range(2)], asyncio.Event()

        async def held():
            result = await model()
            await may_end.wait()
            return result

        tasks = [asyncio.ensure_future(ask(one, held)) for one in fleet for _ in range(2)]
        await until(lambda: sum(one.waiting for one in fleet) == 3)
        for _ in range(5):
            server_clock.now += 0.3
            await until(lambda: store._redis.pttl(lease) > 350)
        may_end.set()
        return await asyncio.gather(*tasks)

    assert len(asyncio.run(run())) == 4
    assert model.calls == 1


def test_a_branch_waits_for_others_as_long_as_it_may_take(store):
    model = Model(first_s=60)

    async def run():
        first, second = process(store), process(store)
        caller = asyncio.ensure_future(ask(first, model))
        await until(lambda: model.calls == 1)
        await ask(second, model, retries={"max_elapsed_s": 0.1})
        caller.cancel()

    asyncio.run(run())
    assert model.calls == 2


@pytest.mark.parametrize(
    "result", [FAILED, structs.replace(DONE, is_cut=True), structs.replace(DONE, output=None)]
)
def test_only_complete_answers_are_kept(store, result):
    model = Model(result)

    async def run():
        for _ in range(2):
            assert (await ask(process(store), model)) == result

    asyncio.run(run())
    assert model.calls == 2
    assert store.cache_stats().answers == 0


@pytest.mark.parametrize(
    ("text", "calls"), [("maybe", 1), ("", 1), ("Yes.", 0), ("x" * 200_000, 1)]
)
def test_a_kept_answer_without_its_shape_is_asked_for_anew(store, text, calls):
    model = Model()

    async def run():
        await ask(process(store), model, choices=["yes", "no"])
        [held] = [key for name in store._answers[1:] for key in store._redis.hkeys(name)]
        poisoned = AnswerSettled(bytes.fromhex(held.decode()), "kept", KeptAnswer(text=text))
        store.settle_answers([poisoned], token="x", ttl_s=99, limit_mb=9)
        model.calls = 0
        answers = [await ask(process(store), model, choices=["yes", "no"]) for _ in range(2)]
        assert [one.output for one in answers] == ["yes", "yes"]

    asyncio.run(run())
    assert model.calls == calls


def test_a_server_that_fails_costs_calls_and_no_branch(store, monkeypatch):
    model = Model()
    asked = []

    def fails(*_args, **_kwargs):
        asked.append(1)
        raise BrokerError("full")

    for name in ("find_answers", "settle_answers"):
        monkeypatch.setattr(RedisStore, name, fails)

    async def run():
        one = process(store)
        return [await ask(one, model) for _ in range(5)]

    assert [one.output for one in asyncio.run(run())] == ["yes"] * 5
    assert model.calls == 5
    assert len(asked) == 1, "it is left alone for a while"


def test_the_calls_of_earlier_deliveries_count(store):
    model = Model()
    before = CallsSoFar(attempts=3, usage=Usage(calls=3, cost_usd=1.0), elapsed_s=4.0)

    async def run():
        await ask(process(store), model)
        return await ask(process(store), model, so_far=before)

    result = asyncio.run(run())
    assert (result.attempts, result.usage, result.elapsed_s) == (3, before.usage, 4.0)
    assert result.saved == structs.replace(USED, calls=1)


def test_nothing_is_kept_where_there_is_no_room():
    settings = load_settings(cache_mb=0)
    answers = Answers(None, settings, InlineExecutor(), linger_s=float, wait_for=asyncio.shield)
    assert not answers.is_on
