"""Code of the user that swallows its cancellation, exits, or never ends."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from fanout.core.errors import LLMError, ModelError
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
        self.begun = self.cancelled = 0

    async def __call__(self, *_given):
        self.begun += 1
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


EXITS = [SystemExit, KeyboardInterrupt, BaseException, GeneratorExit, asyncio.CancelledError]


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(user_code, "_GRACE_S", 0.01)
    monkeypatch.setattr(user_code, "_CHECK_S", 0.02)
    monkeypatch.setattr(user_code, "_CLOSE_S", 0.02)
    monkeypatch.setattr(user_code._ABANDONED_FILTER, "_next", float("-inf"))
    # Threads of earlier tests may run on with theirs.
    monkeypatch.setattr(user_code, "_abandoned", user_code._Abandoned())


@pytest.fixture
def _patient(monkeypatch):
    monkeypatch.setattr(user_code, "_CHECK_S", 30)
    monkeypatch.setattr(user_code, "_CLOSE_S", 30)


def calls(llm, timeout_s):
    policy = RetrySpec(max_attempts=1)
    return complete_with_retries(llm, LLMRequest(prompt="p"), policy=policy, timeout_s=timeout_s)


async def cancelled(coroutine, function):
    """Whether a call that is cancelled once its function has begun ends so."""
    before = function.begun
    task = asyncio.create_task(coroutine)
    while function.begun == before:  # noqa: ASYNC110 - it is a plain value
        await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.wait({task}, timeout=60)
    return task.cancelled()


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_ends_at_its_deadline_and_with_its_run_though_its_function_runs_on(kind, caplog):
    function = Stubborn()

    async def run():
        llm = KINDS[kind](function)
        # The thread of a wrapper may not begin in time.
        while not function.cancelled:
            result = await asyncio.wait_for(calls(llm, 0.02), 60)
            assert result.kind is ErrorKind.TIMEOUT
        assert await cancelled(calls(llm, 60), function)
        assert user_code.has_abandoned(asyncio.get_running_loop())
        assert function.cancelled == 2
        function.is_over = True

    asyncio.run(run())
    assert "did not end when it was cancelled" in caplog.text
    assert not user_code._abandoned.tasks
    assert not user_code._abandoned._counts


# A wrapper whose thread begins late has made its coroutine in vain.
@pytest.mark.filterwarnings("ignore:coroutine 'Stubborn.__call__' was never awaited:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_a_function_of_which_too_many_calls_run_on_is_called_no_more(kind, monkeypatch, caplog):
    monkeypatch.setattr(user_code, "_MOST_ABANDONED", 3)
    function, other = Stubborn(), Stubborn()

    async def run():
        llm = KINDS[kind](function)
        # The thread of a wrapper may not begin in time.
        while len(user_code._abandoned.tasks) < 3:
            assert (await calls(llm, 0.01)).kind is ErrorKind.TIMEOUT
        for result in [await calls(llm, 60) for _ in range(3)]:
            assert result.kind is ErrorKind.INTERNAL
            assert "called no more by this worker: 3 calls of it run on" in result.message
            assert result.stop_after == 1
        assert len(user_code._abandoned.tasks) == 3
        # Others are.
        assert (await calls(KINDS[kind](other), 0.01)).kind is ErrorKind.TIMEOUT
        function.is_over = other.is_over = True
        await asyncio.wait(list(user_code._abandoned.tasks), timeout=60)
        # And so is this one, once its calls have ended.
        assert (await calls(KINDS[kind](function), 60)).kind in {None, ErrorKind.INVALID_OUTPUT}

    asyncio.run(run())
    assert caplog.text.count("did not end when it was cancelled") == 1


def test_tasks_of_other_loops_are_abandoned_while_one_looks_for_its_own():
    class Changes(asyncio.Task[None]):
        """Another thread's loop adds a task as this one is looked at."""

        def get_loop(self):
            if len(user_code._abandoned.tasks) < 5:
                user_code._abandoned.add(Changes(wait(), loop=loop), loop)
            return super().get_loop()

    async def wait():
        await asyncio.sleep(0)

    loop, mine = asyncio.new_event_loop(), asyncio.new_event_loop()
    user_code._abandoned.add(Changes(wait(), loop=loop), loop)
    assert not user_code.has_abandoned(mine)
    loop.run_until_complete(asyncio.gather(*user_code._abandoned.tasks))
    loop.close()
    mine.close()
    assert not user_code._abandoned.tasks


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", EXITS)
def test_an_exit_in_a_function_fails_its_call_and_not_the_loop(kind, error):
    async def exits(*_given):
        raise error("7")

    async def run():
        return await calls(KINDS[kind](exits), 60)

    result = asyncio.run(run())
    assert (result.kind, result.message) == (ErrorKind.INTERNAL, f"{error.__name__}: 7")


@pytest.mark.usefixtures("_patient")
@pytest.mark.parametrize("error", EXITS)
def test_what_a_function_raises_is_no_cancellation_of_its_caller(error):
    async def exits(*_given):
        raise error("7")

    async def cancels_itself(*_given):
        asyncio.current_task().cancel()
        await asyncio.sleep(60)

    async def run():
        for function in (exits, cancels_itself):
            with pytest.raises(LLMError, match=f"{error.__name__}: 7|CancelledError") as caught:
                await user_code.contained(function)
            assert caught.value.kind is ErrorKind.INTERNAL
            with pytest.raises(ModelError, match="its check failed: "):
                await user_code.check_llm(Model(function))
            await user_code.close_llm(Model(function))

    asyncio.run(run())


@pytest.mark.usefixtures("_patient")
@pytest.mark.parametrize("kind", ["check", "complete", "aclose"])
def test_a_timeout_of_an_own_connection_is_told_in_its_words(kind, caplog):
    async def fails(*_given):
        raise TimeoutError("connect to 10.0.0.1 timed out")

    async def run():
        if kind == "check":
            with pytest.raises(TimeoutError, match=r"10\.0\.0\.1"):
                await user_code.check_llm(Model(fails))
        elif kind == "complete":
            result = await calls(Model(fails), 60)
            assert result.kind is ErrorKind.TIMEOUT
            assert result.message == "TimeoutError: connect to 10.0.0.1 timed out"
        else:
            await user_code.close_llm(Model(fails))
            assert "aclose of Model failed: TimeoutError" in caplog.text

    asyncio.run(run())


@pytest.mark.usefixtures("_patient")
@pytest.mark.parametrize("given", [ErrorKind.AUTH, "auth", "no kind"])
def test_the_kind_of_the_error_of_a_check_is_kept(given):
    async def fails(*_given):
        raise LLMError(given, "wrong key")

    async def run():
        with pytest.raises(ModelError, match="its check failed: wrong key") as caught:
            await user_code.check_llm(Model(fails))
        return caught.value.kind

    known = {"no kind": ErrorKind.INTERNAL}
    assert asyncio.run(run()) is known.get(given, ErrorKind.AUTH)


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

    user_code.run_apart(asyncio.wait_for(run(), 60))
    # The loop of the thread ends now.
    function.is_over = True


def test_the_loop_of_a_worker_ends_without_a_function_that_runs_on():
    function, loop = Stubborn(), LoopThread()
    assert loop.wait_for(calls(Model(function), 0.01)).kind is ErrorKind.TIMEOUT
    loop.close()
    # Collected with its loop, it might not end.
    assert not loop.event_loop.is_closed()
    function.is_over = True
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0.01), loop.event_loop).result(60)
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
