"""What blocks runs in threads, so that an event loop goes on."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from concurrent.futures import TimeoutError as NotYetError
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterator

__all__ = ["finished", "in_thread", "pulled"]

_T = TypeVar("_T")
# How soon a thread that waits for an item sees that nobody wants it any more.
_LOOK_S = 0.2


def in_thread(function: Callable[[], _T]) -> asyncio.Future[_T]:
    """Call a function in a new thread; return a future of the running loop.

    Not in the loop's own pool: that has few threads, and the program needs them. Cancelling the
    future does not stop the function.
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

    def work() -> None:
        result, error = None, None
        try:
            result = context.run(function)
        except BaseException as raised:  # noqa: BLE001 - the loop gets it
            error = raised
        # The loop may have been closed meanwhile.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name="fanout-async", daemon=True).start()
    return future


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
