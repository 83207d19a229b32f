"""Awaits code of the user, which may swallow its cancellation, exit, or never end."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from concurrent.futures import Future
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from fanout.core.errors import LLMError, ModelError
from fanout.core.records import ErrorKind
from fanout.llm.base import unexpected
from fanout.llm.sound_replies import sound_error
from fanout.system.fork_locks import ForkSafeLock
from fanout.system.logs import RateLimitFilter
from fanout.system.threads import copied

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from fanout.llm.base import LLM

__all__ = [
    "check_llm",
    "close_llm",
    "contained",
    "has_abandoned",
    "is_of_user",
    "require_room",
    "run_apart",
]

_T = TypeVar("_T")

_OWN = ("fanout.", "workers.")
# What is cancelled may clean up for so long.
_GRACE_S = 1.0
_CHECK_S = 60.0
_CLOSE_S = 5.0
# Calls of one function, or of one object, that run on: each keeps its prompt, and perhaps a connection.
_MOST_ABANDONED = 1_000
_LOG_S = 30.0

_log = logging.getLogger(__name__)
_abandoned_log = logging.getLogger(f"{__name__}.abandoned")
_ABANDONED_FILTER = RateLimitFilter(_LOG_S)
_abandoned_log.addFilter(_ABANDONED_FILTER)


class _Abandoned:
    """The tasks that run on though they were cancelled, of all loops, each with what it is a call of.

    Loops in several threads change them.
    """

    def __init__(self) -> None:
        # An owner is as good as its id, as long as a task of it runs on.
        self.tasks: dict[asyncio.Task[Any], object] = {}
        self._counts: Counter[int] = Counter()
        self._lock = ForkSafeLock()

    def add(self, task: asyncio.Task[Any], owner: object) -> int:
        """Add a task until it ends; return how many its owner has."""
        with self._lock:
            self.tasks[task] = owner
            self._counts[id(owner)] += 1
            count = self._counts[id(owner)]
        task.add_done_callback(self._ended)
        return count

    def _ended(self, task: asyncio.Task[Any]) -> None:
        with self._lock:
            key = id(self.tasks.pop(task))
            self._counts[key] -= 1
            if not self._counts[key]:
                del self._counts[key]
        if not task.cancelled():
            # Without this, asyncio logs an error that nobody waits for.
            task.exception()

    def count(self, owner: object) -> int:
        """Return how many an owner has."""
        return self._counts[id(owner)] if self._counts else 0


_abandoned = _Abandoned()


def is_of_user(llm: LLM) -> bool:
    """Say whether a model is an object of the user, or of a subclass of theirs."""
    return _is_of_user(type(llm))


@lru_cache(maxsize=64)
def _is_of_user(kind: type[object]) -> bool:
    return not kind.__module__.startswith(_OWN)


async def contained(
    function: Callable[..., Awaitable[_T]], *arguments: Any, of: object = None
) -> _T:
    """Await a function of the user. If this is cancelled, it does not wait long until that ends.

    It runs in a task of its own. One that does not end when it is cancelled is abandoned: it runs on,
    and what it returns is ignored.

    Args:
        function: The function.
        arguments: Its arguments.
        of: What it is a call of, if not of the function: see ``require_room``.

    Raises:
        LLMError: It raised what would end the worker, such as SystemExit, or what would pass for a
            cancellation of this.

    Raises what else the function raises.
    """
    owner = function if of is None else of
    task = asyncio.ensure_future(_without_exits(function, arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError as error:
        if task.cancelled() and not _is_cancelled():
            # It cancelled itself.
            raise unexpected(error) from error
        if not task.done():
            task.cancel()
            try:
                await asyncio.wait({task}, timeout=_GRACE_S)
            finally:
                if not task.done():
                    _abandon(task, owner)
        raise


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


async def _without_exits(function: Callable[..., Awaitable[_T]], arguments: tuple[Any, ...]) -> _T:
    try:
        return await function(*arguments)
    except Exception:
        raise
    except BaseException as error:
        if isinstance(error, asyncio.CancelledError) and _is_cancelled():
            raise
        # An exit in a task would end the loop. And a cancellation of what the function awaited would
        # pass for one of its caller.
        raise unexpected(error) from error


def _abandon(task: asyncio.Task[Any], owner: object) -> None:
    count = _abandoned.add(task, owner)
    _abandoned_log.warning(
        "%s did not end when it was cancelled: it runs on, and what it returns is ignored (%d of %d)",
        _name(owner),
        count,
        _MOST_ABANDONED,
    )


def _name(owner: object) -> str:
    name = getattr(owner, "__qualname__", None)
    return name if isinstance(name, str) else type(owner).__qualname__


def require_room(owner: object) -> None:
    """Raise LLMError before a further call of a function or object of which too many calls run on."""
    if _abandoned.count(owner) >= _MOST_ABANDONED:
        raise LLMError(
            ErrorKind.INTERNAL,
            f"{_name(owner)} is called no more by this worker: {_MOST_ABANDONED:,} calls of it run on "
            "though they were cancelled",
            stop_after=1,
        )


def has_abandoned(loop: asyncio.AbstractEventLoop) -> bool:
    """Say whether a loop has tasks that were abandoned and run on."""
    return any(task.get_loop() is loop for task in copied(_abandoned.tasks))


async def check_llm(llm: LLM) -> None:
    """Check a model; one of the user within a minute.

    Raises:
        ModelError: It cannot be used.

    Raises what else the check of an object of the user raises.
    """
    if not is_of_user(llm):
        await llm.check()
        return
    try:
        async with asyncio.timeout(_CHECK_S) as limit:
            await contained(llm.check)
    except TimeoutError:
        if not limit.expired():
            # Its own, such as that of a connection.
            raise
        raise ModelError(f"its check has not ended within {_CHECK_S:g} s") from None
    except LLMError as error:
        # The user may have raised it with any values.
        sound_error(error)
        raise ModelError(f"its check failed: {error}", kind=error.kind) from error


async def close_llm(llm: LLM) -> None:
    """Close a model. One of the user that fails, or takes long, holds up nobody."""
    if not is_of_user(llm):
        await llm.aclose()
        return
    name = type(llm).__qualname__
    try:
        async with asyncio.timeout(_CLOSE_S) as limit:
            await contained(llm.aclose)
    except Exception as error:  # noqa: BLE001 - of the user's code
        if limit.expired() and isinstance(error, TimeoutError):
            _log.warning("aclose of %s has not ended within %g s", name, _CLOSE_S)
        else:
            _log.warning("aclose of %s failed: %s", name, type(error).__name__)


def run_apart(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine on a loop of its own, and do not wait for tasks that were abandoned there.

    Raises what the coroutine raises.
    """
    result: Future[_T] = Future()

    async def run() -> None:
        try:
            result.set_result(await coroutine)
        except BaseException as error:  # noqa: BLE001 - raised in the calling thread
            result.set_exception(error)

    # The end of the loop waits for its tasks, and the end of the process not for this thread.
    threading.Thread(target=asyncio.run, args=(run(),), name="fanout-apart", daemon=True).start()
    return result.result()
