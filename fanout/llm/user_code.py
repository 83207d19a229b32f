"""Awaits code of the user, which may swallow its cancellation, exit, or never end."""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from fanout.core.errors import LLMError, ModelError
from fanout.llm.base import unexpected

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from fanout.llm.base import LLM

__all__ = ["check_llm", "close_llm", "contained", "has_abandoned", "is_of_user", "run_apart"]

_T = TypeVar("_T")

_OWN = ("fanout.", "workers.")
# What is cancelled may clean up for so long.
_GRACE_S = 1.0
_CHECK_S = 60.0
_CLOSE_S = 5.0

_log = logging.getLogger(__name__)

_abandoned: set[asyncio.Task[Any]] = set()


def is_of_user(llm: LLM) -> bool:
    """Say whether a model is an object of the user, or of a subclass of theirs."""
    return not type(llm).__module__.startswith(_OWN)


async def contained(function: Callable[..., Awaitable[_T]], *arguments: Any) -> _T:
    """Await a function of the user. If this is cancelled, it does not wait long until that ends.

    It runs in a task of its own. One that does not end when it is cancelled is abandoned: it runs on,
    and what it returns is ignored.

    Raises:
        LLMError: It raised what would end the worker, such as SystemExit.

    Raises what else the function raises.
    """
    task = asyncio.ensure_future(_without_exits(function, arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if not task.done():
            task.cancel()
            try:
                await asyncio.wait({task}, timeout=_GRACE_S)
            finally:
                if not task.done():
                    _abandon(task, function)
        raise


async def _without_exits(function: Callable[..., Awaitable[_T]], arguments: tuple[Any, ...]) -> _T:
    try:
        return await function(*arguments)
    except (Exception, asyncio.CancelledError):
        raise
    except BaseException as error:
        # An exit in a task would end the loop.
        raise unexpected(error) from error


def _abandon(task: asyncio.Task[Any], function: Callable[..., object]) -> None:
    _abandoned.add(task)
    task.add_done_callback(_ended)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    _log.warning(
        "%s did not end when it was cancelled: it runs on, and what it returns is ignored", name
    )


def _ended(task: asyncio.Task[Any]) -> None:
    _abandoned.discard(task)
    if not task.cancelled():
        # Without this, asyncio logs an error that nobody waits for.
        task.exception()


def has_abandoned(loop: asyncio.AbstractEventLoop) -> bool:
    """Say whether a loop has tasks that were abandoned and run on."""
    return any(task.get_loop() is loop for task in _abandoned)


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
        async with asyncio.timeout(_CHECK_S):
            await contained(llm.check)
    except TimeoutError:
        raise ModelError(f"its check has not ended within {_CHECK_S:g} s") from None
    except LLMError as error:
        raise ModelError(f"its check failed: {error}") from error


async def close_llm(llm: LLM) -> None:
    """Close a model. One of the user that fails, or takes long, holds up nobody."""
    if not is_of_user(llm):
        await llm.aclose()
        return
    try:
        async with asyncio.timeout(_CLOSE_S):
            await contained(llm.aclose)
    except TimeoutError:
        _log.warning("aclose of %s has not ended within %g s", type(llm).__qualname__, _CLOSE_S)
    except Exception as error:  # noqa: BLE001 - of the user's code
        _log.warning("aclose of %s failed: %s", type(llm).__qualname__, type(error).__name__)


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
