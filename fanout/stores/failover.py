"""Closes connections to a former master as soon as the sentinels name another one.

A server that hangs keeps its connections open, so each read waits for the socket timeout; a worker
waits on several connections in turn. The sentinels notice sooner.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError
from redis.sentinel import SentinelManagedConnection

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MasterWatch", "WatchedConnection"]

_EVERY_S = 1.0

_Address = tuple[str, int]


class MasterWatch:
    """Asks the sentinels which server is the master, while there are connections to one.

    Args:
        ask: Returns the master's address; raises RedisError if the sentinels know none.
        every_s: Seconds between two questions.
    """

    def __init__(self, ask: Callable[[], _Address], *, every_s: float = _EVERY_S) -> None:
        self._ask = ask
        self._every_s = every_s
        self._connections: weakref.WeakSet[Any] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._is_running = False
        self._last: _Address | None = None

    def add(self, connection: SentinelManagedConnection) -> None:
        """Watch a new connection: close it once its server is no longer the master."""
        with self._lock:
            self._connections.add(connection)
            if not self._is_running:
                self._is_running = True
                threading.Thread(target=self._run, name="masters", daemon=True).start()

    def _run(self) -> None:
        while self._is_needed():
            time.sleep(self._every_s)
            self.look()

    def _is_needed(self) -> bool:
        with self._lock:
            self._is_running = any(each._sock is not None for each in self._connections)  # noqa: SLF001
            return self._is_running

    def look(self) -> None:
        """Ask once. Act on two equal answers in a row, as sentinels may disagree for a moment."""
        try:
            master = self._ask()
        except (RedisError, OSError):
            return
        is_sure, self._last = master == self._last, master
        if not is_sure:
            return
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            sock = connection._sock  # noqa: SLF001 - nothing public interrupts a read
            if sock is not None and (connection.host, connection.port) != master:
                # A thread that reads from the socket gets an error at once.
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)


_watches: dict[Any, MasterWatch] = {}
# A forked child has none of its parent's threads.
os.register_at_fork(after_in_child=_watches.clear)


def _watch_of(pool: Any) -> MasterWatch:
    manager, service = pool.sentinel_manager, pool.service_name
    kwargs = (each.connection_pool.connection_kwargs for each in manager.sentinels)
    key = (service, frozenset((each.get("host"), each.get("port")) for each in kwargs))
    if key not in _watches:
        _watches.setdefault(key, MasterWatch(lambda: manager.discover_master(service)))
    return _watches[key]


class WatchedConnection(SentinelManagedConnection):
    """A connection to a master that closes when the sentinels name another master."""

    def connect_to(self, address: _Address) -> None:
        """Connect to the current master."""
        super().connect_to(address)  # type: ignore[no-untyped-call]
        if self.connection_pool.is_master:
            _watch_of(self.connection_pool).add(self)
