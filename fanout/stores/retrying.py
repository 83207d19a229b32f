"""Retries of idempotent steps while the server is unreachable or refuses commands.

A server that answers may still refuse a command: its disk is full, replicas are missing, another
client's script is running, or the user lacks a right. redis-py has one class for most of these
errors, so the functions here also read the error's message.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, TypeVar

import redis
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ClusterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    TryAgainError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["call_with_retries", "is_recoverable", "is_transient", "lacks_rights", "server_message"]

_T = TypeVar("_T")

# The server is unreachable, full, a replica since a failover, or still loads its data.
_PASSING = (
    redis.ConnectionError,
    redis.TimeoutError,
    OutOfMemoryError,
    ReadOnlyError,
    ClusterDownError,
    TryAgainError,
)
_RIGHTS = (AuthenticationError, AuthorizationError, NoPermissionError)
# The prefix that a pipeline adds to the error of one of its commands.
_PIPELINE = re.compile(r"^Command # \d+ \(.*\) of pipeline caused error: ", re.DOTALL)
# Error codes for which redis-py has no class.
_CODES = frozenset({"MISCONF", "NOREPLICAS", "BUSY", "UNKILLABLE", "MASTERDOWN", "LOADING", "OOM"})
# Of what a script may not do, Redis 7.0 and later ones have different words.
_IN_SCRIPTS = ("The user executing the script ", "ACL failure in script")
_NO_RIGHTS = ("NOPERM", "NOAUTH", "WRONGPASS", *_IN_SCRIPTS)

_FIRST_WAIT_S = 0.05
_LONGEST_WAIT_S = 1.0


def server_message(error: BaseException) -> str:
    """Return the server's error message without the prefix that a pipeline adds."""
    return _PIPELINE.sub("", str(error))


def lacks_rights(error: BaseException) -> bool:
    """Return whether the server refuses the user by an ACL or by the password."""
    if isinstance(error, _RIGHTS):
        return True
    return isinstance(error, redis.ResponseError) and server_message(error).startswith(_NO_RIGHTS)


def is_transient(error: BaseException) -> bool:
    """Return whether the server may carry out later what it refuses now."""
    # redis-py reports a wrong password as a connection error.
    if lacks_rights(error):
        return False
    if isinstance(error, _PASSING):
        return True
    return (
        isinstance(error, redis.ResponseError) and server_message(error).partition(" ")[0] in _CODES
    )


def is_recoverable(error: BaseException) -> bool:
    """Return whether a caller that holds a paid answer should wait until the error is over.

    Includes missing rights: an operator can correct an ACL or a password, but the answer is not
    given again.
    """
    return is_transient(error) or lacks_rights(error)


def call_with_retries(
    step: Callable[[], _T],
    *,
    patience_s: float,
    is_worth: Callable[[BaseException], bool] = is_transient,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> _T:
    """Call ``step`` with retries for ``patience_s`` seconds, and return its result.

    Args:
        step: An idempotent function.
        patience_s: Seconds after which the error of the last attempt is raised.
        is_worth: Returns whether to retry after an error.
        clock: Returns monotonic seconds.
        sleep: Waits a number of seconds.
    """
    until = clock() + patience_s
    wait_s = _FIRST_WAIT_S
    while True:
        try:
            return step()
        except Exception as error:
            if not is_worth(error) or clock() + wait_s > until:
                raise
        sleep(wait_s)
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
