"""Lua scripts as server functions, so that only the server's operator may send it code.

A user who may call ``EVAL`` can send an endless loop, which blocks the server. An operator loads a
function (Redis 7, Valkey) once; clients then call it by its name, with their own rights. The name
is a hash of the source: in a rolling upgrade each version of fanout calls its own functions, and
an existing function is always the right one.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import redis
from redis.client import Pipeline
from redis.commands.core import Script
from redis.exceptions import NoPermissionError, NoScriptError, OutOfMemoryError, ResponseError

from fanout.system.fork_locks import ForkSafeLock

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "DESPITE_FULL",
    "FunctionsClient",
    "FunctionsMissingError",
    "ServerFunction",
    "library",
    "load",
    "missing",
]

# A script that begins with this line runs on a full server too: it writes few bytes or only reads.
# Otherwise users could neither stop the runs that fill the server nor see the live workers.
DESPITE_FULL = "-- despite a full server"
_BYTES_OF_NAME = 10
_MISSING = (
    "the server lacks functions of this version of fanout, and this user may not load them: run "
    "`fanout setup-server` once, with the URL of the server's admin"
)
# By connection pool: whether its server receives scripts instead of function calls, if known.
_evaluates: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
_lock = ForkSafeLock()


class FunctionsMissingError(ResponseError):
    """The server lacks a function, and the user may not load it."""


def _name(source: str) -> str:
    return f"fanout_{hashlib.sha256(source.encode()).hexdigest()[: 2 * _BYTES_OF_NAME]}"


def _is_small(source: str) -> bool:
    return source.lstrip().startswith(DESPITE_FULL)


def library(source: str) -> str:
    """Return a script's library: the script as a function, and one that shows that it is loaded."""
    name = _name(source)
    flags = "'allow-oom'" if _is_small(source) else ""
    return (
        f"#!lua name={name}\n"
        f"redis.register_function{{function_name='{name}', flags={{{flags}}}, "
        f"callback=function(KEYS, ARGV)\n{source}\nend}}\n"
        f"redis.register_function{{function_name='{name}_there', "
        "callback=function() return 1 end, flags={'no-writes', 'allow-oom', 'allow-stale'}}\n"
    )


def load(client: redis.Redis, sources: Iterable[str]) -> None:
    """Load scripts as functions. Replacing an existing one changes nothing."""
    for source in sources:
        client.execute_command("FUNCTION", "LOAD", "REPLACE", library(source))  # type: ignore[no-untyped-call]


def missing(client: redis.Redis, sources: Sequence[str]) -> int:
    """Return how many of these scripts the server lacks as functions."""
    with client.pipeline(transaction=False) as pipe:
        for source in sources:
            pipe.execute_command("FCALL_RO", f"{_name(source)}_there", 0)  # type: ignore[no-untyped-call]
        return sum(isinstance(answer, Exception) for answer in pipe.execute(raise_on_error=False))


class ServerFunction:
    """A script as a server function, with the interface of redis-py's ``Script``.

    Loads the function if it is missing and the client's user may load it. Sends the script instead
    if the server has no functions, or if the user may only use ``EVAL``.

    Args:
        client: The client to use if a call names none.
        source: The Lua, with its ``KEYS`` and ``ARGV``.

    Raises:
        FunctionsMissingError: On a call: the function is missing and cannot be loaded.
    """

    def __init__(self, client: redis.Redis, source: str) -> None:
        self._client = client
        self._source = source
        self._name = _name(source)
        self._script = Script(client, source)

    def __call__(
        self,
        keys: Sequence[Any] | None = None,
        args: Iterable[Any] | None = None,
        client: redis.Redis | None = None,
    ) -> Any:
        """Call the function; in a pipeline, add the call to it."""
        client = self._client if client is None else client
        given = (tuple(keys or ()), tuple(args or ()))
        if _evaluates.get(client.connection_pool):
            return self._script(*given, client=client)
        if isinstance(client, Pipeline):
            # A pipeline's answers come too late to load a missing function.
            self._make_ready(client.connection_pool)
            if _evaluates.get(client.connection_pool):
                return self._script(*given, client=client)
            return self._call(client, *given)
        try:
            return self._call(client, *given)
        except NoPermissionError:
            return self._evaluated(client, *given)
        except ResponseError as error:
            if not _is_missing(error):
                raise
        return self._loaded(client, *given)

    def _loaded(self, client: redis.Redis, keys: tuple[Any, ...], args: tuple[Any, ...]) -> Any:
        """Load the function and call it; a full server gets the script, if that may run there."""
        try:
            self._load(client)
        except OutOfMemoryError:
            if not _is_small(self._source):
                raise
            source = f"#!lua flags=allow-oom\n{self._source}"
            return client.eval(source, len(keys), *keys, *args)
        if _evaluates.get(client.connection_pool):
            return self._script(keys, args, client=client)
        return self._call(client, keys, args)

    def add_to(self, pipe: Pipeline, keys: Sequence[Any], args: Iterable[Any]) -> None:
        """Add a call to a pipeline; check once whether the server has functions. See was_missing."""
        if pipe.connection_pool not in _evaluates:
            # The server refuses a whole transaction because of one unknown command.
            self._make_ready(pipe.connection_pool)
        if _evaluates.get(pipe.connection_pool):
            pipe.evalsha(self._script.sha, len(keys), *keys, *args)
        else:
            self._call(pipe, tuple(keys), tuple(args))

    @staticmethod
    def was_missing(answer: object) -> bool:
        """Return whether a pipeline's answer to a call means that the function is missing."""
        return isinstance(answer, ResponseError) and (
            isinstance(answer, NoScriptError) or _is_missing(answer)
        )

    def _call(self, client: redis.Redis, keys: tuple[Any, ...], args: tuple[Any, ...]) -> Any:
        return client.execute_command("FCALL", self._name, len(keys), *keys, *args)  # type: ignore[no-untyped-call]

    def _evaluated(self, client: redis.Redis, keys: tuple[Any, ...], args: tuple[Any, ...]) -> Any:
        """Send the script: the server's ACL may be older than fanout's functions."""
        try:
            answer = self._script(keys, args, client=client)
        except NoPermissionError:
            # The user may do neither: the error of a function call names the missing right.
            return self._call(client, keys, args)
        _evaluates[client.connection_pool] = True
        return answer

    def _make_ready(self, pool: Any) -> None:
        client = redis.Redis(connection_pool=pool)
        try:
            client.execute_command("FCALL_RO", f"{self._name}_there", 0)  # type: ignore[no-untyped-call]
        except NoPermissionError:
            _evaluates[pool] = True
        except ResponseError as error:
            if not _is_missing(error):
                raise
            self._load(client)
        _evaluates.setdefault(pool, False)

    def _load(self, client: redis.Redis) -> None:
        try:
            with _lock:
                load(client, [self._source])
        except NoPermissionError as error:
            raise FunctionsMissingError(_MISSING) from error
        except ResponseError as error:
            if "unknown" not in str(error).lower():
                raise
            # The server has no functions: Redis 6, and the fake server of tests.
            _evaluates[client.connection_pool] = True


def _is_missing(error: ResponseError) -> bool:
    text = str(error).lower()
    return "function not found" in text or "unknown command" in text


class FunctionsClient(redis.Redis):
    """A client that runs every registered script, also those of libraries, as a function."""

    def register_script(self, script: Any) -> Any:
        """Return the script as a ``ServerFunction``."""
        return ServerFunction(self, script if isinstance(script, str) else bytes(script).decode())
