"""Lua scripts as functions of the server, so that nobody but its operator may send it code.

Whoever may ``EVAL`` can send a loop without an end, and nothing else is served meanwhile. A
function (Redis 7, Valkey) is loaded once by a user who may do that, and called by its name with the
rights of whoever calls it. It is named by its source: of a fleet that is upgraded step by step each
version calls its own, and a function that is there is the right one.
"""

from __future__ import annotations

import hashlib
import threading
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import redis
from redis.client import Pipeline
from redis.commands.core import Script
from redis.exceptions import NoPermissionError, NoScriptError, OutOfMemoryError, ResponseError

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

# How a script begins that a full server carries out all the same: its writes are few bytes, or it
# only reads. Otherwise nobody could stop the runs that have filled it, nor see which workers live.
DESPITE_FULL = "-- despite a full server"
_BYTES_OF_NAME = 10
_MISSING = (
    "the server lacks functions of this version of fanout, and this user may not load them: run "
    "`fanout setup-server` once, with the URL of the server's admin"
)
# By its pool: whether the server that a client's connections go to is sent scripts, where that is
# known.
_evaluates: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
_lock = threading.Lock()


class FunctionsMissingError(ResponseError):
    """The server lacks a function, and this user may not load it."""


def _name(source: str) -> str:
    return f"fanout_{hashlib.sha256(source.encode()).hexdigest()[: 2 * _BYTES_OF_NAME]}"


def _is_small(source: str) -> bool:
    return source.lstrip().startswith(DESPITE_FULL)


def library(source: str) -> str:
    """Return the library of a script: it as a function, and one that only says that it is there."""
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
    """Load scripts as functions; those that are there are replaced by the same."""
    for source in sources:
        client.execute_command("FUNCTION", "LOAD", "REPLACE", library(source))  # type: ignore[no-untyped-call]


def missing(client: redis.Redis, sources: Sequence[str]) -> int:
    """Return how many of these scripts the server lacks as functions."""
    with client.pipeline(transaction=False) as pipe:
        for source in sources:
            pipe.execute_command("FCALL_RO", f"{_name(source)}_there", 0)  # type: ignore[no-untyped-call]
        return sum(isinstance(answer, Exception) for answer in pipe.execute(raise_on_error=False))


class ServerFunction:
    """A script as a function of the server: to be called as redis-py's own ``Script``.

    It is loaded where it is missing and the client's user may do that. A server that knows no
    functions is sent the script, as is one whose users may only do so.

    Args:
        client: Whose server it is called on, where a call names no other.
        source: The Lua, with its ``KEYS`` and ``ARGV``.

    Raises:
        FunctionsMissingError: By a call: it is missing and cannot be loaded.
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
        """Call it; in a pipeline, with what else that sends."""
        client = self._client if client is None else client
        given = (tuple(keys or ()), tuple(args or ()))
        if _evaluates.get(client.connection_pool):
            return self._script(*given, client=client)
        if isinstance(client, Pipeline):
            # Its answers come too late to load what is missing.
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
        """Load it, and call it."""
        try:
            self._load(client)
        except OutOfMemoryError:
            return self._despite(client, keys, args)
        if _evaluates.get(client.connection_pool):
            return self._script(keys, args, client=client)
        return self._call(client, keys, args)

    def _despite(self, client: redis.Redis, keys: tuple[Any, ...], args: tuple[Any, ...]) -> Any:
        """Send the script where a full server takes no function, if it may run there."""
        if not _is_small(self._source):
            raise OutOfMemoryError("command not allowed when used memory > 'maxmemory'")
        source = f"#!lua flags=allow-oom\n{self._source}"
        return client.eval(source, len(keys), *keys, *args)

    def add_to(self, pipe: Pipeline, keys: Sequence[Any], args: Iterable[Any]) -> None:
        """Have a pipeline call it, asking once whether functions are known: see was_missing."""
        if pipe.connection_pool not in _evaluates:
            # A transaction with a command that the server does not know is refused as a whole.
            self._make_ready(pipe.connection_pool)
        if _evaluates.get(pipe.connection_pool):
            pipe.evalsha(self._script.sha, len(keys), *keys, *args)
        else:
            self._call(pipe, tuple(keys), tuple(args))

    @staticmethod
    def was_missing(answer: object) -> bool:
        """Say whether a pipeline's answer to a call is that there is no such function."""
        return isinstance(answer, ResponseError) and (
            isinstance(answer, NoScriptError) or _is_missing(answer)
        )

    def _call(self, client: redis.Redis, keys: tuple[Any, ...], args: tuple[Any, ...]) -> Any:
        return client.execute_command("FCALL", self._name, len(keys), *keys, *args)  # type: ignore[no-untyped-call]

    def _evaluated(self, client: redis.Redis, keys: tuple[Any, ...], args: tuple[Any, ...]) -> Any:
        """Send the script: the users of a server may be those of a version before functions."""
        try:
            answer = self._script(keys, args, client=client)
        except NoPermissionError:
            # Neither is allowed, for now: what a call says is what its user lacks.
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
            # It knows no functions: Redis 6, and what stands in for a server in tests.
            _evaluates[client.connection_pool] = True


def _is_missing(error: ResponseError) -> bool:
    text = str(error).lower()
    return "function not found" in text or "unknown command" in text


class FunctionsClient(redis.Redis):
    """A client whose scripts are functions of the server, also those of who is given it."""

    def register_script(self, script: Any) -> Any:
        """Return a script as ``ServerFunction``."""
        return ServerFunction(self, script if isinstance(script, str) else bytes(script).decode())
