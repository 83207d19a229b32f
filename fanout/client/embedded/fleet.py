"""A worker for one client, with its own database of the embedded server.

``EmbeddedFleet`` runs its worker as a child process. ``InProcessFleet`` runs it in a thread of the
calling process, for functions that another process could not import.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fanout.client.embedded.server import EmbeddedServer, log_tail
from fanout.client.embedded.state import StateFolder
from fanout.core.errors import BrokerError, EmbeddedError, RunError, SettingsError
from fanout.core.settings import load_settings
from fanout.core.trace_settings import check_traces
from fanout.core.version import WIRE_VERSION
from fanout.system.file_locks import is_held
from fanout.system.fork_locks import ForkSafeLock
from fanout.system.open_files import fitting_concurrency
from fanout.system.programs import load_program, worker_command

if TYPE_CHECKING:
    from typing import Self

    from fanout.client.embedded.databases import Database, Databases

__all__ = ["EmbeddedFleet", "InProcessFleet", "use_server"]

# What the guard and the worker print.
_LOG = "worker.log"
_MAX_RESTARTS = 5
_USAGE = 2
_LEAST_FILE_BYTES = 256_000_000
_SHARED_CONCURRENCY = 64
_CLOSED = "the embedded worker has stopped: its client was closed"

_log = logging.getLogger(__name__)


def use_server(*, begins_runs: bool = False) -> EmbeddedServer:
    """Return this user's server.

    A server that a process with small files (``ulimit -f``) starts could keep nothing. Such a process
    gets a server of its own for new runs, which end with it.

    Args:
        begins_runs: Whether the caller begins new runs.

    Raises:
        EmbeddedError: Its folder cannot be used.
    """
    folder = StateFolder.open(load_settings(), wire=WIRE_VERSION)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    is_limited = limit != resource.RLIM_INFINITY and limit < _LEAST_FILE_BYTES
    if begins_runs and is_limited and not is_held(folder.keeper):
        _log.warning("runs are not kept: files are limited to %d kB here", limit // 1_000)
        return EmbeddedServer(StateFolder.temporary(), keeps=False)
    return EmbeddedServer(folder)


class EmbeddedFleet:
    """A database of the embedded server and, unless ``concurrency`` is 0, one worker process.

    The worker ends when the fleet is closed or the calling process ends for any reason; its runs stay.
    Everything starts in the background; ``database`` and ``broker_url`` wait for the server.

    Args:
        concurrency: Branches in flight of the worker.
        database: The database of a client that has died; None for a new one.
    """

    def __init__(self, *, concurrency: int, database: Database | None = None) -> None:
        check_traces(load_settings())
        self._concurrency = concurrency
        self._restarts = 0
        self._guard: subprocess.Popen[bytes] | None = None
        self._has_runs = database is not None
        self._is_closed = False
        self._server = use_server(begins_runs=database is None)
        self._folder = Path(tempfile.mkdtemp(prefix="fanout-"))
        try:
            if concurrency:
                self._guard = self._start_guard()
            if database is not None:
                self.database = database
                self._send_database(database)
        except BaseException:
            self._stop()
            raise
        atexit.register(self._stop)

    def _start_guard(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "fanout.client.embedded.guard", str(self._folder)]
        # The worker can import what this process can: functions are named by dotted path.
        paths = [path or str(Path.cwd()) for path in sys.path]
        with (self._folder / _LOG).open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [
                    *command,
                    str(self._concurrency),
                    str(self._server.folder.path),
                    "yes" if self._server.keeps else "no",
                    *worker_command("--quiet", "--broker-url-from-stdin"),
                ],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                # Ctrl-C is for the caller, who then decides what becomes of the run.
                start_new_session=True,
            )

    @cached_property
    def databases(self) -> Databases:
        """The server's databases. Raises EmbeddedError if it does not start."""
        from fanout.client.embedded.databases import Databases

        return Databases(self._server, load_settings())

    @cached_property
    def database(self) -> Database:
        """The fleet's own. Raises EmbeddedError if the server does not start."""
        database = self.databases.claim()
        self._send_database(database)
        return database

    def _send_database(self, database: Database) -> None:
        lock = self._server.folder.databases / f"{database.number}.lock"
        self._send(json.dumps({"url": database.url, "lock": str(lock)}))

    @property
    def keeps(self) -> bool:
        """Whether runs outlive the server process."""
        return self._server.keeps

    @property
    def broker_url(self) -> str:
        """The database's URL. Raises EmbeddedError if the server does not start."""
        return self.database.url

    def remember(self, run_id: str, *, created_at: float) -> None:
        """Record a run that is about to be created here, so that every client finds it."""
        self._has_runs = True
        self.databases.remember(run_id, self.database.number, created_at=created_at)

    def _send(self, message: str) -> None:
        """Send a line to the guard, unless it has ended or the pipe is closed."""
        if self._guard is not None and self._guard.stdin is not None:
            with suppress(BrokenPipeError, ValueError):
                self._guard.stdin.write(f"{message}\n".encode())
                self._guard.stdin.flush()

    def check(self) -> None:
        """Check that the fleet is alive; restart a guard that was killed.

        Raises:
            SettingsError: The worker does not start with these settings.
            EmbeddedError: The worker has stopped, or another thread has closed the fleet.
        """
        self._require_open()
        self._server.check()
        if self._guard is None or self._guard.poll() is None:
            return
        # A fleet that is closed meanwhile ends its guard.
        self._require_open()
        # The guard exits by itself if its worker does not start; a signal is no reason to give up.
        if self._guard.returncode >= 0 or self._restarts == _MAX_RESTARTS:
            tail = log_tail(self._folder / _LOG).removeprefix("fanout: ")
            if self._guard.returncode == _USAGE:
                raise SettingsError(f"the embedded worker does not start: {tail}")
            raise EmbeddedError(f"the embedded worker has stopped: {tail}")
        self._restarts += 1
        self._forget_guard()
        self._guard = self._start_guard()
        self._send_database(self.database)

    def _require_open(self) -> None:
        if self._is_closed:
            raise EmbeddedError(_CLOSED)

    def _forget_guard(self) -> None:
        if self._guard is not None and self._guard.stdin is not None:
            with suppress(BrokenPipeError):
                self._guard.stdin.close()
            self._guard.wait()

    def close(self) -> None:
        """Stop the worker; its runs and their results stay. Safe to call twice."""
        self._stop()

    def _stop(self) -> None:
        self._is_closed = True
        atexit.unregister(self._stop)
        self._send("end")
        self._forget_guard()
        self._release()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _release(self) -> None:
        # Only what was used; and once, as another client may use the database afterwards.
        database: Database | None = vars(self).pop("database", None)
        if "databases" in vars(self):
            if database is not None and not self._has_runs:
                with suppress(BrokerError):
                    self.databases.forget(database)
            self.databases.close()
        if database is not None:
            database.release()
        self._server.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class InProcessFleet(EmbeddedFleet):
    """A database of the embedded server, and a worker in a thread of this process.

    Celery keeps a worker's state in globals, so a process has one such worker. All users of the fleet
    share it, and it stops with the last of them.
    """

    _lock = ForkSafeLock(is_reentrant=True)
    _shared: InProcessFleet | None = None

    @classmethod
    def acquire(cls, *, concurrency: int, database: Database | None = None) -> InProcessFleet:
        """Return the fleet of this process; the parameters are those of the class.

        The first caller fixes the worker's concurrency, so it is ample: ``max_workers`` limits what a
        run has in flight.

        Raises:
            RunError: ``database`` is given, and this process has a worker for another one.
            SettingsError: The worker does not start with these settings.
        """
        with cls._lock:
            if cls._shared is None:
                most = max(concurrency, fitting_concurrency(_SHARED_CONCURRENCY))
                cls._shared = cls(concurrency=most, database=database)
            elif database is not None:
                raise RunError(
                    "this process runs functions of other runs already: go on with that one in a "
                    "process of its own, or before it has begun another run"
                )
            fleet = cls._shared
            fleet._users += 1  # noqa: SLF001 - our own class
            return fleet

    def __init__(self, *, concurrency: int, database: Database | None = None) -> None:
        self._users = 0
        self._worker: Any = None
        super().__init__(concurrency=0, database=database)
        try:
            self._worker = self._start_worker(concurrency)
        except BaseException:
            self._stop()
            raise

    def _start_worker(self, concurrency: int) -> Any:
        # The server starts during this import.
        make_worker = load_program("in_process")
        settings = load_settings(broker_url=self.broker_url)
        if not settings.allowed_callables:
            # The worker may import what this process names.
            settings = settings.model_copy(update={"allowed_callables": ("*",)})
        worker = make_worker(settings, concurrency=concurrency)
        worker.start()
        return worker

    def check(self) -> None:
        """Check that the fleet is alive. Raises EmbeddedError or SettingsError."""
        super().check()
        # Another thread may close it meanwhile.
        worker = self._worker
        if worker is None:
            raise EmbeddedError(_CLOSED)
        worker.check()

    def close(self) -> None:
        """Release the fleet; the last user stops it."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._stop()

    def _stop(self) -> None:
        with self._lock:
            if InProcessFleet._shared is self:
                InProcessFleet._shared = None
            worker, self._worker = self._worker, None
            if worker is not None:
                worker.stop()
            super()._stop()
