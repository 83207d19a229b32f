"""A thread pool that starts its threads in advance, and a copy of what other threads change.

Python's pool starts a thread when it gets work. If the process or machine can start no more
threads, ``submit`` raises, although the work is already in the pool's queue and another thread may
do it: the caller cannot know.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, BrokenBarrierError
from typing import TYPE_CHECKING, TypeVar

from fanout.core.exhaustion import is_exhausted

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ReadyThreads", "copied"]

_T = TypeVar("_T")

_START_S = 10.0

_log = logging.getLogger(__name__)


class ReadyThreads(ThreadPoolExecutor):
    """A pool that starts threads in advance, so that ``submit`` never fails for lack of a thread.

    Args:
        count: The most threads. If so many cannot be started, the existing ones do the work.
        name: The prefix of their names.
        first: How many are started at once; None: all.

    Raises:
        RuntimeError: Not even one thread can be started.
    """

    def __init__(self, count: int, name: str, *, first: int | None = None) -> None:
        super().__init__(count, thread_name_prefix=name)
        self._is_short = False
        self._start(min(count, first or count))

    def _start(self, count: int) -> None:
        # Each task waits for the others: an idle thread would otherwise take a second task.
        barrier = Barrier(count + 1)
        for _ in range(count):
            self.submit(_meet, barrier)
            if self._is_short:
                barrier.abort()
                return
        _meet(barrier)

    def _adjust_thread_count(self) -> None:
        try:
            super()._adjust_thread_count()
        except RuntimeError as error:
            if not is_exhausted(error) or not self._threads:
                raise
            if not self._is_short:
                _log.warning(
                    "this process cannot start more threads: %s has %d of %d",
                    self._thread_name_prefix, len(self._threads), self._max_workers,
                )  # fmt: skip
            self._is_short = True


def _meet(barrier: Barrier) -> None:
    try:
        barrier.wait(_START_S)
    except BrokenBarrierError:
        return


def copied(items: Iterable[_T]) -> list[_T]:
    """Return the items of a set or dict that other threads may change during the iteration."""
    while True:
        try:
            return list(items)
        except RuntimeError:
            continue
