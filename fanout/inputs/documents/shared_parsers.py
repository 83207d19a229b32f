"""Parsers that the threads of a process share, such as those of a worker."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from fanout.system.fork_locks import ForkSafeLock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["SharedParsers"]

_IDLE_S = 30.0


class _Parser(Protocol):
    """What is lent: see ``ParserPool``."""

    def close(self) -> None: ...


_P = TypeVar("_P", bound=_Parser)


class SharedParsers(Generic[_P]):
    """Lends parsers of one process each; those that nobody has used for a while are ended.

    Args:
        make: Returns a further parser.
        idle_s: Seconds after the last use of any after which all are ended, as each holds memory.
    """

    def __init__(self, make: Callable[[], _P], *, idle_s: float = _IDLE_S) -> None:
        self._make = make
        self._idle_s = idle_s
        self._lock = ForkSafeLock()
        self._idle: list[_P] = []
        self._lent = 0
        self._timer: threading.Timer | None = None

    @contextmanager
    def lent(self) -> Iterator[_P]:
        """Give a parser that no other thread uses meanwhile. Raises InputError if there is none."""
        with self._lock:
            self._lent += 1
            self._stop_timer()
            parser: _P | None = self._idle.pop() if self._idle else None
        try:
            if parser is None:
                parser = self._make()
            yield parser
        except BaseException:
            # What it is doing is unknown.
            if parser is not None:
                parser.close()
                parser = None
            raise
        finally:
            self._take_back(parser)

    def _take_back(self, parser: _P | None) -> None:
        with self._lock:
            self._lent -= 1
            if parser is not None:
                self._idle.append(parser)
            if self._idle and not self._lent:
                self._timer = threading.Timer(self._idle_s, self._end_idle)
                self._timer.daemon = True
                self._timer.start()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end_idle(self) -> None:
        with self._lock:
            if self._lent:
                return
            idle, self._idle = self._idle, []
        for parser in idle:
            parser.close()
