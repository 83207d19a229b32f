"""The event loop of a worker process: uvloop's if installed, at a third of the CPU time."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

from fanout.llm.user_code import has_abandoned
from fanout.system.threads import ReadyThreads

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["LoopThread", "new_event_loop"]

_T = TypeVar("_T")
# Threads for blocking steps that have none of their own.
_THREADS = 8


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return a new event loop."""
    if find_spec("uvloop") is None:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = import_module("uvloop").new_event_loop()
    return loop


class LoopThread:
    """An event loop and the thread that runs it.

    Attributes:
        event_loop: The loop.
    """

    def __init__(self) -> None:
        self.event_loop = new_event_loop()
        # The loop would start these by itself when it first needs them.
        self._threads = ReadyThreads(_THREADS, "fanout-other")
        self.event_loop.set_default_executor(self._threads)
        self._thread = threading.Thread(target=self._run, name="fanout-loop", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.event_loop)
        # uvloop resolves names in threads of its own, and ends the process if it cannot start them.
        self.event_loop.create_task(_look_up_a_name())
        self.event_loop.run_forever()

    def call_soon(self, step: Callable[..., object], *args: object) -> None:
        """Have the loop call ``step``; any thread may ask for it."""
        self.event_loop.call_soon_threadsafe(step, *args)

    def wait_for(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine on the loop, and wait for it in the calling thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.event_loop).result()

    def close(self) -> None:
        """End the loop and its threads, unless a function of the user runs on there.

        A function that swallows its cancellation might not end as it is collected with its loop.
        """
        if has_abandoned(self.event_loop):
            return
        self.event_loop.call_soon_threadsafe(self.event_loop.stop)
        self._thread.join()
        self.event_loop.close()
        self._threads.shutdown(wait=False, cancel_futures=True)


async def _look_up_a_name() -> None:
    with suppress(OSError):
        await asyncio.get_running_loop().getaddrinfo("localhost", None)
