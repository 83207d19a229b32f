"""What blocks runs in threads, so that an event loop goes on."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections.abc import Callable
from concurrent.futures import TimeoutError as NotYetError
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Iterator

__all__ = ["finished", "in_thread", "pulled"]

_T = TypeVar("_T")
# How soon a thread that waits for an item sees that nobody wants it any more.
_LOOK_S = 0.2
# How long a thread waits for more work: longer than the pause between two looks at a run.
_IDLE_S = 1.0

# Returns what reports the result.
_Work = Callable[[], Callable[[], None]]


# The threads that have nothing to do: what each waits for.
_idle: list[SimpleQueue[_Work]] = []
# A child has the list of its parent, and none of its threads.
os.register_at_fork(after_in_child=_idle.clear)


def in_thread(function: Callable[[], _T]) -> asyncio.Future[_T]:
    """Call a function in a thread of its own; return a future of the running loop.

    Not in the loop's own pool: that has few threads, and the program needs them. Cancelling the
    future does not stop the function. A StopIteration of the function becomes a RuntimeError.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()
    context = contextvars.copy_context()

    def settle(result: _T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type] # the result of the function

    def work() -> Callable[[], None]:
        result: _T | None = None
        error: BaseException | None = None
        try:
            result = context.run(function)
        except StopIteration as raised:
            # No future takes it: what awaits the future would wait for ever.
            error = RuntimeError("a function that runs in a thread raised StopIteration")
            error.__cause__ = raised
        except BaseException as raised:  # noqa: BLE001 - the loop gets it
            error = raised
        return lambda: _call_soon(loop, settle, result, error)

    _begin(work)
    return future


def _call_soon(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: Any) -> None:
    # The loop may have been closed meanwhile.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *args)


def _begin(work: _Work) -> None:
    """Do work in a thread that is idle, or in a new one: any number may wait at the same time."""
    try:
        tasks = _idle.pop()
    except IndexError:
        tasks = SimpleQueue()
        thread = threading.Thread(target=_serve, args=(tasks,), name="fanout-async", daemon=True)
        thread.start()
    tasks.put(work)


def _serve(tasks: SimpleQueue[_Work]) -> None:
    while True:
        try:
            work = tasks.get(timeout=_IDLE_S)
        except Empty:
            try:
                _idle.remove(tasks)
            except ValueError:
                # It has just been given work.
                work = tasks.get()
            else:
                return
        report = work()
        # First: what waits for the report may have further work.
        _idle.append(tasks)
        report()
        del work, report


async def finished(work: Coroutine[None, None, object]) -> None:
    """Await work to its end although the task is cancelled, once or several times."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.shield(task)
    task.result()


def pulled(
    items: AsyncIterable[_T], loop: asyncio.AbstractEventLoop, is_over: Callable[[], bool]
) -> Iterator[_T]:
    """Yield the items of an async iterable in a thread; the loop makes them, one at a time.

    Args:
        items: The items.
        loop: The loop that runs them.
        is_over: Whether nobody wants a further item.
    """
    source = aiter(items)
    while True:
        future = asyncio.run_coroutine_threadsafe(_next(source), loop)
        while True:
            try:
                found = future.result(timeout=_LOOK_S)
                break
            except NotYetError:
                if is_over():
                    future.cancel()
                    return
        if not found:
            return
        yield found[0]


async def _next(source: AsyncIterator[_T]) -> list[_T]:
    # A coroutine cannot raise StopAsyncIteration into a future of a thread.
    async for item in source:
        return [item]
    return []
