"""A server without a protocol: the test controls every byte that it sends."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self


class RawServer:
    """Runs `talk` in a thread for each connection; closes the connection when it returns."""

    def __init__(self, talk: Callable[[socket.socket], None]) -> None:
        self._talk = talk
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._meet, args=(connection,), daemon=True).start()

    def _meet(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            self._talk(connection)

    def close(self) -> None:
        # Wakes the accepting thread.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def read_request(connection: socket.socket) -> bytes:
    """Read one request, with its body; b"" if the client has disconnected."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += (block := connection.recv(65_536))
        if not block:
            return b""
    head, _, body = data.partition(b"\r\n\r\n")
    _, named, rest = head.lower().partition(b"content-length:")
    left = int(rest.split(b"\r\n", 1)[0]) - len(body) if named else 0
    while left > 0:
        block = connection.recv(65_536)
        data, left = data + block, left - len(block)
    return data
