"""What blocks runs in threads, and the event loop goes on."""

from __future__ import annotations

import asyncio
import contextvars
import multiprocessing
import os
import threading

import pytest

from fanout.client.loop_threads import finished, in_thread, pulled

NAME = contextvars.ContextVar("NAME", default="nobody")


def test_a_function_runs_in_a_thread_with_the_context_of_its_task():
    async def use():
        NAME.set("Ann")
        seen = await in_thread(lambda: (threading.current_thread().name, NAME.get()))
        assert seen == ("fanout-async", "Ann")
        with pytest.raises(ZeroDivisionError):
            await in_thread(lambda: 1 / 0)
        with pytest.raises(KeyboardInterrupt):
            await in_thread(_interrupt)
        with pytest.raises(RuntimeError, match="StopIteration"):
            await asyncio.wait_for(in_thread(lambda: next(iter([]))), 90)

    asyncio.run(use())


def _interrupt():
    raise KeyboardInterrupt


def test_many_threads_may_wait_at_the_same_time():
    """A pool of the loop has fewer threads than this, and would wait for ever."""
    meet = threading.Barrier(50, timeout=90)

    async def use():
        return await asyncio.gather(*(in_thread(meet.wait) for _ in range(50)))

    assert sorted(asyncio.run(use())) == list(range(50))


def test_calls_one_after_the_other_share_a_thread_and_later_ones_get_another(monkeypatch):
    monkeypatch.setattr("fanout.client.loop_threads._IDLE_S", 1.0)

    async def use():
        first = await in_thread(threading.current_thread)
        # Another test's thread may be idle, too.
        seen = {await in_thread(threading.current_thread) for _ in range(50)}
        assert len(seen) == 1
        await asyncio.to_thread(lambda: [thread.join(90) for thread in {first, *seen}])
        assert await in_thread(threading.current_thread) not in seen

    asyncio.run(use())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_starts_threads_of_its_own():
    async def use():
        return await in_thread(lambda: 7)

    assert asyncio.run(use()) == 7
    child = multiprocessing.get_context("fork").Process(target=lambda: os._exit(asyncio.run(use())))
    child.start()
    child.join(90)
    assert child.exitcode == 7


def test_a_cancelled_task_leaves_its_function_alone():
    is_over, ended = threading.Event(), threading.Event()

    def work():
        is_over.wait(90)
        ended.set()
        raise ValueError

    async def use():
        task = asyncio.ensure_future(in_thread(work))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        is_over.set()

    asyncio.run(use())
    assert ended.wait(90)


def test_work_is_finished_although_the_task_is_cancelled_twice():
    seen = []

    async def work(may_end):
        await may_end.wait()
        seen.append("done")

    async def use():
        may_end = asyncio.Event()
        task = asyncio.create_task(finished(work(may_end)))
        for _ in range(2):
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        may_end.set()
        await task

    asyncio.run(use())
    assert seen == ["done"]


async def numbers(count, *, fault=None):
    for number in range(count):
        await asyncio.sleep(0)
        yield str(number)
    if fault is not None:
        raise fault


def test_the_items_of_an_async_iterable_are_pulled_in_a_thread():
    async def use(items):
        loop = asyncio.get_running_loop()
        return await in_thread(lambda: list(pulled(items, loop, lambda: False)))

    assert asyncio.run(use(numbers(3))) == ["0", "1", "2"]
    with pytest.raises(ValueError, match="mine"):
        asyncio.run(use(numbers(3, fault=ValueError("mine"))))


def test_a_thread_that_waits_for_an_item_ends_when_nobody_wants_it():
    async def never():
        await asyncio.Event().wait()
        yield "never"

    async def use():
        loop = asyncio.get_running_loop()
        return await in_thread(lambda: list(pulled(never(), loop, lambda: True)))

    assert asyncio.run(use()) == []
