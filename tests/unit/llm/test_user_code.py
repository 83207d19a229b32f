"""Code of the user that swallows its cancellation, exits, or never ends."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from fanout.core.errors import ModelError
from fanout.core.records import ErrorKind
from fanout.core.spec_fields import RetrySpec
from fanout.llm import LLMReply, LLMRequest, user_code
from fanout.llm.callables import CallableLLM
from fanout.llm.calls import complete_with_retries
from workers.context.event_loop import LoopThread


class Stubborn:
    """Runs on when it is cancelled, until a test is over."""

    def __init__(self):
        self.is_over = False
        self.cancelled = 0

    async def __call__(self, *_given):
        while not self.is_over:
            try:
                await asyncio.sleep(0.001)
            except BaseException:  # noqa: BLE001 - as some functions do
                self.cancelled += 1
        return "late"


class Model:
    """An object of the user whose coroutines are those of a function."""

    def __init__(self, function):
        self.complete = self.check = self.aclose = function


def _of(function):
    async def awaits(*given):
        return await function(*given)

    return awaits


KINDS = {
    "async": lambda function: CallableLLM(_of(function)),
    "object": CallableLLM,
    "wrapper": lambda function: CallableLLM(partial(function)),
    "model": Model,
}


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(user_code, "_GRACE_S", 0.01)
    monkeypatch.setattr(user_code, "_CHECK_S", 0.02)
    monkeypatch.setattr(user_code, "_CLOSE_S", 0.02)


def calls(llm, timeout_s):
    policy = RetrySpec(max_attempts=1)
    return complete_with_retries(llm, LLMRequest(prompt="p"), policy=policy, timeout_s=timeout_s)


async def cancelled(coroutine):
    task = asyncio.create_task(coroutine)
    await asyncio.wait({task}, timeout=0.02)
    task.cancel()
    await asyncio.wait({task}, timeout=5)
    return task.cancelled()


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_ends_at_its_deadline_and_with_its_run_though_its_function_runs_on(kind, caplog):
    function = Stubborn()

    async def run():
        llm = KINDS[kind](function)
        result = await asyncio.wait_for(calls(llm, 0.02), 5)
        assert result.kind is ErrorKind.TIMEOUT
        assert await cancelled(calls(llm, 60))
        assert user_code.has_abandoned(asyncio.get_running_loop())
        assert function.cancelled == 2
        function.is_over = True

    asyncio.run(run())
    assert "did not end when it was cancelled" in caplog.text
    assert not user_code._abandoned


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, BaseException, GeneratorExit])
def test_an_exit_in_a_function_fails_its_call_and_not_the_loop(kind, error):
    async def exits(*_given):
        raise error("7")

    async def run():
        return await calls(KINDS[kind](exits), 5)

    result = asyncio.run(run())
    assert (result.kind, result.message) == (ErrorKind.INTERNAL, f"{error.__name__}: 7")


def test_what_cleans_up_when_it_is_cancelled_is_awaited():
    is_clean = False

    async def cleans_up(*_given):
        nonlocal is_clean
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            is_clean = True

    async def run():
        return await calls(Model(cleans_up), 0.01)

    assert asyncio.run(run()).kind is ErrorKind.TIMEOUT
    assert is_clean


async def _raises(*_given):
    raise SystemExit(7)


@pytest.mark.parametrize("function", [Stubborn(), _raises], ids=["stubborn", "exits"])
def test_the_check_and_the_end_of_a_model_of_the_user_hold_up_nobody(function):
    async def run():
        with pytest.raises(
            ModelError, match=r"its check (has not ended within|failed: .*SystemExit)"
        ):
            await user_code.check_llm(Model(function))
        await user_code.close_llm(Model(function))

    user_code.run_apart(asyncio.wait_for(run(), 5))
    # The loop of the thread ends now.
    function.is_over = True


def test_the_loop_of_a_worker_ends_without_a_function_that_runs_on():
    function, loop = Stubborn(), LoopThread()
    assert loop.wait_for(calls(Model(function), 0.01)).kind is ErrorKind.TIMEOUT
    loop.close()
    # Collected with its loop, it might not end.
    assert not loop.event_loop.is_closed()
    function.is_over = True
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0.01), loop.event_loop).result(5)
    loop.close()
    assert loop.event_loop.is_closed()


def test_what_is_made_of_a_value_is_made_off_the_loop():
    values = []

    async def run():
        loop = asyncio.get_running_loop()

        def then(value):
            with pytest.raises(RuntimeError, match="no running event loop"):
                asyncio.get_running_loop()
            values.append(value)
            return loop

        async def answers(_given):
            return [1]

        for one in (answers, lambda _given: [1], partial(answers)):
            assert await CallableLLM(one).call("x", then=then) is loop
        return await CallableLLM(answers).call("x")

    assert asyncio.run(run()) == [1]
    assert values == [[1]] * 3


def test_a_model_of_the_user_answers():
    async def answers(request):
        return LLMReply(text=f"to {request.prompt}")

    assert asyncio.run(calls(Model(answers), 5)).output == "to p"
