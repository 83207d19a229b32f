"""Python functions ``str -> str`` as models: sync or async, given directly or by import path."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import secrets
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fanout.core.errors import LLMError, ModelError
from fanout.core.records import ErrorKind
from fanout.inputs.fences import is_rule
from fanout.llm.allowlist import require_allowed, require_home, split_path
from fanout.llm.base import LLM, LLMReply, LLMRequest, unexpected
from fanout.llm.user_code import contained, require_room
from fanout.system.threads import ReadyThreads

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

__all__ = [
    "CallableLLM",
    "import_path",
    "is_callable_model",
    "is_registered",
    "load_callable",
    "register_callable",
    "resolve_callable",
    "takes_prompt_only",
    "unregister_callable",
]

_PREFIX = "callable:"

_registered: dict[str, Any] = {}


def _as_it_is(returned: Any) -> Any:
    return returned


class CallableLLM:
    """A function as a model.

    Args:
        function: Takes the prompt and returns the answer, as a string, or as an LLMReply with what
            it consumed and why it ended. A sync function runs in a thread, so
            that it does not block other calls. A thread cannot be stopped, and an async function may
            swallow its cancellation: after a deadline it runs on, and its answer is ignored.
        concurrency: The number of threads for a sync function.
    """

    def __init__(self, function: Callable[..., Any], *, concurrency: int = 32) -> None:
        self._function = function
        self._is_async = _is_async(function)
        self._concurrency = concurrency
        self._threads: ReadyThreads | None = None
        if not self._is_async:
            self._threads = ReadyThreads(concurrency, "fanout-call", first=1)

    async def check(self) -> None:
        """Do nothing: only a call shows whether a function works."""

    async def complete(self, request: LLMRequest) -> LLMReply:
        """Call the function with the prompt.

        Raises:
            LLMError: The function raised (kind ``internal``, or its own kind if it raised
                LLMError), it did not return a string (``invalid_output``), or the request has
                options that a function does not take (``bad_request``).
        """
        _require_prompt_only(request)
        try:
            text = await self.call(request.function_prompt)
        except (LLMError, asyncio.CancelledError):
            raise
        except BaseException as error:
            # SystemExit in a function must end its branch, not the worker.
            raise unexpected(error) from error
        if isinstance(text, LLMReply):
            return text
        if not isinstance(text, str):
            kind = type(text).__name__
            raise LLMError(ErrorKind.INVALID_OUTPUT, f"the function returned {kind}, not str")
        return LLMReply(text=text)

    async def call(self, *arguments: Any, then: Callable[[Any], Any] = _as_it_is) -> Any:
        """Return what ``then`` makes of what the function returns, in a thread unless it is a text.

        Raises:
            LLMError: Too many calls of the function run on.

        Raises what they raise.
        """
        require_room(self._function)
        if self._is_async:
            returned = await contained(self._function, *arguments)
        else:
            returned, is_ready = await self._in_thread(_called, self._function, arguments, then)
            if is_ready:
                return returned
            # A sync wrapper around an async function, such as a partial or a decorator.
            returned = await contained(_awaited, returned, of=self._function)
        if then is _as_it_is or isinstance(returned, str):
            return then(returned)
        return await self._in_thread(then, returned)

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if self._threads is None:
            self._threads = ReadyThreads(self._concurrency, "fanout-call", first=1)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, _shielded, function, *arguments)

    async def aclose(self) -> None:
        """Shut the threads down; do not wait for calls in progress."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)


_CROSSES_NO_FUTURE = (StopIteration, concurrent.futures.CancelledError)


def _called(
    function: Callable[..., Any], arguments: tuple[Any, ...], then: Callable[[Any], Any]
) -> tuple[Any, bool]:
    """Return what a function returns, and whether that is ready; only then with what ``then`` makes."""
    returned = function(*arguments)
    if inspect.isawaitable(returned):
        return returned, False
    return then(returned), True


async def _awaited(returned: Awaitable[Any]) -> Any:
    return await returned


def _shielded(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except BaseException as error:
        if isinstance(error, Exception) and not isinstance(error, _CROSSES_NO_FUTURE):
            raise
        # Unwrapped, the exception would end the thread, or cancel the task that awaits the future.
        raise unexpected(error) from error


def _require_prompt_only(request: LLMRequest) -> None:
    """Raise LLMError if the request has options that a function would ignore.

    A client checks functions of its own process before a run. It knows only the names of others.
    """
    # It has no place for what fences mean, which is for models.
    system = None if is_rule(request.system) else request.system
    options = (system, request.temperature, request.seed, request.stop or None)
    if options == (None, None, None, None):
        return
    names = ("system", "temperature", "seed", "stop")
    given = ", ".join(name for name, value in zip(names, options, strict=True) if value is not None)
    raise LLMError(
        ErrorKind.BAD_REQUEST,
        f"the model is a function that takes the prompt only: leave out {given}",
        stop_after=1,
    )


def _is_async(function: Any) -> bool:
    call = getattr(function, "__call__", None)  # noqa: B004 - an object with an async __call__
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def is_callable_model(model: str) -> bool:
    """Say whether a model string names a function that only one process knows."""
    return model.startswith(_PREFIX)


def is_registered(model: str) -> bool:
    """Say whether this process knows the function of a ``callable:`` model string."""
    return model in _registered


def takes_prompt_only(model: str) -> bool:
    """Say whether a model string names a function of this process, and not an LLM."""
    registered = _registered.get(model)
    return registered is not None and not isinstance(registered, LLM)


def register_callable(function: Any, model: str | None = None) -> str:
    """Register a function for the workers in this process; return its model string.

    Args:
        function: The function.
        model: The model string that a run of an ended process recorded for the function. If it is
            None, the function gets a new string that is unique across processes.
    """
    if model is None:
        name = getattr(function, "__qualname__", type(function).__qualname__)
        model = f"{_PREFIX}{name}-{secrets.token_hex(4)}"
    _registered[model] = function
    return model


def unregister_callable(model: str) -> None:
    """Forget a function."""
    _registered.pop(model, None)


def resolve_callable(model: str) -> Any:
    """Return the function of a ``callable:`` model string.

    Raises:
        ModelError: This process does not know it.
    """
    try:
        return _registered[model]
    except KeyError:
        raise ModelError(
            f"{model} is a function of another process: name it as 'package.module:function'"
        ) from None


def load_callable(path: str, *, allowed: Collection[str]) -> Any:
    """Return the object at ``package.module:name``.

    Raises:
        ModelError: There is no such object, or the list does not allow it. In the second case
            nothing is imported.
    """
    module_name, name = require_allowed(path, allowed)
    try:
        module = import_module(module_name)
    except Exception as error:
        raise ModelError(
            f"the function {path} cannot be used: importing {module_name} failed with "
            f"{type(error).__name__}: {error}"
        ) from error
    found: Any = getattr(module, name, None)
    if found is None or inspect.ismodule(found):
        raise ModelError(f"the function {path} cannot be used: {module_name} has no {name}")
    require_home(path, found, allowed)
    if not callable(found) and not isinstance(found, LLM):
        kind = type(found).__name__
        raise ModelError(f"{path} is of type {kind}, which cannot be called")
    return found


def import_path(function: Any) -> str | None:
    """Return ``package.module:name`` if another process could import the function, else None."""
    module_name = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", None)
    if not module_name or not name or module_name == "__main__" or "<" in name:
        return None
    path = f"{module_name}:{name}"
    is_there = getattr(sys.modules.get(module_name), name, None) is function
    return path if is_there and split_path(path) is not None else None
