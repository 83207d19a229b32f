"""Trying again while the server is away: for steps that may be done twice."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

import redis
from redis.exceptions import AuthenticationError, OutOfMemoryError, ReadOnlyError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PASSING_ERRORS", "patiently"]

_T = TypeVar("_T")

# What passes by itself: the server is away, full, or was demoted to a replica.
PASSING_ERRORS = (redis.ConnectionError, redis.TimeoutError, OutOfMemoryError, ReadOnlyError)

_FIRST_WAIT_S = 0.05
_LONGEST_WAIT_S = 1.0


def patiently(
    step: Callable[[], _T],
    *,
    patience_s: float,
    errors: tuple[type[Exception], ...] = PASSING_ERRORS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> _T:
    """Return what ``step`` returns, which is tried again for ``patience_s`` seconds.

    Args:
        step: May be carried out twice without harm.
        patience_s: Seconds after which its error is raised.
        errors: What is worth trying again.
        clock: Seconds, rising.
        sleep: Waits.
    """
    until = clock() + patience_s
    wait_s = _FIRST_WAIT_S
    while True:
        try:
            return step()
        except AuthenticationError:
            # To redis-py it is an error of the connection; but no waiting makes a password right.
            raise
        except errors:
            if clock() + wait_s > until:
                raise
        sleep(wait_s)
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
