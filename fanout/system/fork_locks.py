"""A lock that no forked child inherits in use.

A prefork worker starts children at any time, while its own threads use locks. A child has a copy of
each lock and none of the threads: one that was in use would never become free.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["ForkSafeLock"]


class ForkSafeLock:
    """A lock that is free in a forked child, for what lives as long as its process.

    A child may find half changed what the lock guards: guard what each change leaves usable.

    Args:
        is_reentrant: Whether the thread that has it may take it again.
    """

    def __init__(self, *, is_reentrant: bool = False) -> None:
        self._make = threading.RLock if is_reentrant else threading.Lock
        self._lock = self._make()
        _locks.add(self)

    def __enter__(self) -> Self:
        self._lock.acquire()
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._lock.release()

    def take(self) -> bool:
        """Take the lock if it is free, and return whether it was; ``give_back`` ends that."""
        return self._lock.acquire(blocking=False)

    def give_back(self) -> None:
        """Free the lock that ``take`` took."""
        self._lock.release()

    def renew(self) -> None:
        """Free the lock in a child, whichever thread of its parent has it."""
        self._lock = self._make()


_locks: weakref.WeakSet[ForkSafeLock] = weakref.WeakSet()


def _renew_all() -> None:
    for lock in _locks:
        lock.renew()


os.register_at_fork(after_in_child=_renew_all)
