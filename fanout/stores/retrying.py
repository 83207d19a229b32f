"""Trying again while the server cannot do what is asked: for steps that may be done twice.

A server that answers may refuse all the same: its disk is full, its replicas are missing, a script
of somebody's runs, its user may not write. To redis-py most of these are one class of error, so
what they say decides.
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

__all__ = ["lacks_rights", "outlasts", "passes", "patiently", "refusal"]

_T = TypeVar("_T")

# The server is away, full, a replica since a failover, or loads its data.
_PASSING = (
    redis.ConnectionError,
    redis.TimeoutError,
    OutOfMemoryError,
    ReadOnlyError,
    ClusterDownError,
    TryAgainError,
)
_RIGHTS = (AuthenticationError, AuthorizationError, NoPermissionError)
# What a pipeline puts before an error of one of its commands.
_PIPELINE = re.compile(r"^Command # \d+ \(.*\) of pipeline caused error: ", re.DOTALL)
# The first word of what redis-py has no class of its own for.
_CODES = frozenset({"MISCONF", "NOREPLICAS", "BUSY", "UNKILLABLE", "MASTERDOWN", "LOADING", "OOM"})
_NO_RIGHTS = ("NOPERM", "NOAUTH", "WRONGPASS", "ACL failure in script")

_FIRST_WAIT_S = 0.05
_LONGEST_WAIT_S = 1.0


def refusal(error: BaseException) -> str:
    """Return what the server said, without what a pipeline puts before it."""
    return _PIPELINE.sub("", str(error))


def lacks_rights(error: BaseException) -> bool:
    """Say whether the server refuses the user: by an ACL, or by its password."""
    if isinstance(error, _RIGHTS):
        return True
    return isinstance(error, redis.ResponseError) and refusal(error).startswith(_NO_RIGHTS)


def passes(error: BaseException) -> bool:
    """Say whether what the server refuses now it may do soon, without anybody's help or with."""
    # To redis-py a wrong password is an error of the connection.
    if lacks_rights(error):
        return False
    if isinstance(error, _PASSING):
        return True
    return isinstance(error, redis.ResponseError) and refusal(error).partition(" ")[0] in _CODES


def outlasts(error: BaseException) -> bool:
    """Say whether whoever has something in hand that was paid for waits until this is over.

    Also what the user may not do: an ACL or a password is put right, an answer is not given again.
    """
    return passes(error) or lacks_rights(error)


def patiently(
    step: Callable[[], _T],
    *,
    patience_s: float,
    is_worth: Callable[[BaseException], bool] = passes,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> _T:
    """Return what ``step`` returns, which is tried again for ``patience_s`` seconds.

    Args:
        step: May be carried out twice without harm.
        patience_s: Seconds after which its error is raised.
        is_worth: Says of an error whether the step is worth trying again.
        clock: Seconds, rising.
        sleep: Waits.
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
