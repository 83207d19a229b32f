"""Threads that are there before they are needed.

Python's own pool starts a thread when there is work for it. Where the machine, or the process, may
have no more, that raises, although the work is in the pool's queue by then and another of its
threads may do it: whoever asked cannot know.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, BrokenBarrierError

from fanout.core.exhaustion import is_exhausted

__all__ = ["ReadyThreads"]

_START_S = 10.0

_log = logging.getLogger(__name__)


class ReadyThreads(ThreadPoolExecutor):
    """A pool of which the first threads run from the start; ``submit`` never fails for want of one.

    Args:
        count: The most threads. Where there cannot be so many, those there are do the work.
        name: What they are called.
        first: How many are started at once; None: all.

    Raises:
        RuntimeError: Not even one thread can be started.
    """

    def __init__(self, count: int, name: str, *, first: int | None = None) -> None:
        super().__init__(count, thread_name_prefix=name)
        self._is_short = False
        self._start(min(count, first or count))

    def _start(self, count: int) -> None:
        # Each waits for the others, so that none takes the place of two.
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
                    "this process may start no more threads: %s has %d of %d",
                    self._thread_name_prefix, len(self._threads), self._max_workers,
                )  # fmt: skip
            self._is_short = True


def _meet(barrier: Barrier) -> None:
    try:
        barrier.wait(_START_S)
    except BrokenBarrierError:
        return
