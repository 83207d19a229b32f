"""Supervises an embedded worker. It is started as a module, with five arguments or more.

    python -m fanout.client.embedded.guard FOLDER CONCURRENCY STATE KEEPS COMMAND...

``COMMAND`` starts a worker that reads its broker's URL from standard input. The guard's own standard
input is a pipe from the client: one line names the client's database, and ``end`` ends the worker at
once. If the pipe closes without it, the client has died: the calls in flight, which are paid for, get a
few seconds to end. The guard restarts a worker that dies, and the server's keeper. If a worker does not
start, the guard ends with its exit status. Both print to the guard's standard error.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from fanout.system.file_locks import FileLock, is_held

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["main"]

_CHECK_S = 0.2
# Seconds between two checks that the server's keeper is alive.
_KEEPER_S = 2.0
# Restarts, by exit status: a worker refuses settings with 2, and another end before it consumes is 70.
_MAX_RESTARTS = 20
_FEWER_RESTARTS = {2: 0, os.EX_SOFTWARE: 2}
# How long its worker may take to send its last spans; a collector that is away takes 3 s.
_FLUSH_S = 8.0
# What the calls in flight get when the client has died, unless FANOUT_GRACE_S is less.
_LAST_CALLS_S = 10.0


def main(folder: Path, concurrency: int, state: Path, command: list[str], *, keeps: bool) -> int:
    """Keep a worker, which ``command`` starts, until standard input closes; return an exit status."""
    # The server does not end before the worker has.
    with FileLock(state / "users.lock", is_shared=True):
        worker = _WorkerProcess(command, concurrency)
        keep_server = partial(_keep_server, state, keeps=keeps)
        is_dead = True
        try:
            is_dead = _watch(worker, keep_server)
        finally:
            if is_dead:
                # The worker writes its last outcomes there.
                keep_server()
            worker.stop(_grace_s() if is_dead else 0.0)
    if is_dead:
        # The client cannot do it.
        shutil.rmtree(folder, ignore_errors=True)
    return worker.exit_status


def _keep_server(state: Path, *, keeps: bool) -> None:
    """Make sure that the server runs, and that a keeper ends it after its last client."""
    if is_held(state / "keeper.lock"):
        return
    # Imported on use, as it takes memory.
    from fanout.client.embedded.server import keep_running
    from fanout.client.embedded.state import StateFolder

    keep_running(StateFolder(state), keeps=keeps, starts=True)


def _grace_s() -> float:
    with suppress(ValueError):
        return min(_LAST_CALLS_S, float(os.environ.get("FANOUT_GRACE_S") or _LAST_CALLS_S))
    return _LAST_CALLS_S


def _watch(worker: _WorkerProcess, keep_server: Callable[[], None]) -> bool:
    """Watch until the client or its worker ends; return whether the client died."""
    lock: FileLock | None = None
    due_at = time.monotonic() + _KEEPER_S
    with selectors.DefaultSelector() as selector:
        selector.register(sys.stdin.buffer, selectors.EVENT_READ)
        while True:
            if selector.select(_CHECK_S):
                message = os.read(sys.stdin.fileno(), 4096)
                if not message:
                    return True
                if message.endswith(b"end\n"):
                    return False
                database = json.loads(message)
                # The database belongs to the worker while there is one.
                lock = lock or FileLock(Path(database["lock"]), is_shared=True)
                worker.send(database["url"])
            if not worker.keep():
                return False
            if time.monotonic() >= due_at:
                keep_server()
                due_at = time.monotonic() + _KEEPER_S


class _WorkerProcess:
    """A worker process, restarted when it dies."""

    def __init__(self, command: list[str], concurrency: int) -> None:
        options = ["--concurrency", str(concurrency)]
        # A single worker has no peers to gossip with, and no process watches its events.
        options += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        options += ["--loglevel", "WARNING", "--hostname", f"embedded-{os.getpid()}@%h"]
        self._command = [*command, *options]
        # It serves only the process that started it, and may import and read what that one names.
        allowed = os.environ.get("FANOUT_ALLOWED_CALLABLES") or "*"
        self._env = {
            **os.environ,
            "FANOUT_ALLOWED_CALLABLES": allowed,
            "FANOUT_READ_SCHEMES": os.environ.get("FANOUT_READ_SCHEMES") or "*",
            "FANOUT_POOL": "asyncio",
            # It takes from all queues, at a fixed concurrency: these are for the workers of a fleet.
            "FANOUT_QUEUES": "",
            "FANOUT_AUTOSCALE": "",
        }
        self._url: str | None = None
        self._restarts = 0
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        # The log shows why the last one has ended.
        with suppress(OSError):
            os.ftruncate(sys.stderr.fileno(), 0)
        return subprocess.Popen(  # noqa: S603 - our own interpreter and module
            self._command, env=self._env, stdin=subprocess.PIPE
        )

    @property
    def exit_status(self) -> int:
        """The status with which the worker ended; 0 if a signal ended it."""
        return max(0, self._process.returncode)

    def send(self, url: str) -> None:
        """Send the server's URL, which the worker awaits. It ends when the pipe closes."""
        self._url = url
        # A worker that has died is restarted soon.
        with suppress(BrokenPipeError):
            stdin = cast("IO[bytes]", self._process.stdin)
            stdin.write(f"{url}\n".encode())
            stdin.flush()

    def keep(self) -> bool:
        """Restart the worker if it has died and may start again; return whether there is one."""
        status = self._process.poll()
        if status is None:
            return True
        self._restarts += 1
        if self._restarts > _FEWER_RESTARTS.get(status, _MAX_RESTARTS):
            return False
        time.sleep(min(0.1 * self._restarts, 1.0))
        self._process = self._start()
        if self._url is not None:
            self.send(self._url)
        return True

    def stop(self, grace_s: float) -> None:
        """Stop the worker after ``grace_s`` seconds for its calls in flight."""
        if grace_s and self._url is not None:
            self._process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(grace_s)
        elif os.environ.get("FANOUT_TRACES", "off") != "off":
            # It hands back its branches, and sends its last spans.
            self._process.send_signal(signal.SIGQUIT)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_FLUSH_S)
        # The next owner of the database returns its messages to the queues.
        self._process.kill()
        self._process.wait()


if __name__ == "__main__":
    own, concurrency, state, keeps, *command = sys.argv[1:]
    sys.exit(main(Path(own), int(concurrency), Path(state), command, keeps=keeps == "yes"))
