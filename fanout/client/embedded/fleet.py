"""A worker for one client, with its own database of the embedded server.

There are two kinds. ``EmbeddedFleet`` runs its worker as a child process. ``InProcessFleet`` runs it in a
thread of the calling process, for functions that another process could not import.
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
import threading
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fanout.client.embedded.server import EmbeddedServer, log_tail
from fanout.client.embedded.state import StateFolder
from fanout.core.errors import BrokerError, EmbeddedError, RunError, SettingsError
from fanout.core.settings import check_traces, load_settings
from fanout.core.version import WIRE_VERSION
from fanout.system.file_locks import is_held
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

_log = logging.getLogger(__name__)


def use_server(*, begins_runs: bool = False) -> EmbeddedServer:
    """Return this user's server.

    A process whose files must stay small (``ulimit -f``) could start none that keeps anything: it
    gets one of its own for its new runs, which end with it.

    Args:
        begins_runs: Whether it is for new runs.

    Raises:
        EmbeddedError: Its folder cannot be used.
    """
    folder = StateFolder.open(load_settings(), wire=WIRE_VERSION)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    is_limited = limit != resource.RLIM_INFINITY and limit < _LEAST_FILE_BYTES
    if begins_runs and is_limited and not is_held(folder.keeper):
        _log.warning("runs are not kept: files are limited to %d kB here", limit // 1_000)
        return EmbeddedServer(StateFolder.passing(), keeps=False)
    return EmbeddedServer(folder)


class EmbeddedFleet:
    """A database of the embedded server and, unless ``concurrency`` is 0, one worker process.

    The worker ends when the fleet is closed, and when the calling process ends, however it
    ends; its runs stay. All starts in the background: ``broker_url`` is known, and waited for,
    when the server answers.

    Args:
        concurrency: Branches in flight of the worker.
        database: The database of a client that has died; a new one where it is None.
    """

    def __init__(self, *, concurrency: int, database: Database | None = None) -> None:
        check_traces(load_settings())
        self._concurrency = concurrency
        self._restarts = 0
        self._taken_over = database
        self._guard: subprocess.Popen[bytes] | None = None
        self._has_runs = database is not None
        self._server = use_server(begins_runs=database is None)
        self._folder = Path(tempfile.mkdtemp(prefix="fanout-"))
        try:
            if concurrency:
                self._guard = self._start_guard()
        except BaseException:
            self.close()
            raise
        atexit.register(self.close)

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
        """The server's databases. Raises EmbeddedError where it does not start."""
        from fanout.client.embedded.databases import Databases

        return Databases(self._server, load_settings())

    @cached_property
    def database(self) -> Database:
        """The fleet's own. Raises EmbeddedError where the server does not start."""
        database = self._taken_over or self.databases.claim()
        self._tell_place(database)
        return database

    def _tell_place(self, database: Database) -> None:
        lock = self._server.folder.databases / f"{database.number}.lock"
        self._tell({"url": database.url, "lock": str(lock)})

    @property
    def keeps(self) -> bool:
        """Whether runs outlive the server process."""
        return self._server.keeps

    @property
    def broker_url(self) -> str:
        """The database's URL. Raises EmbeddedError where the server does not start."""
        return self.database.url

    def remember(self, run_id: str, *, created_at: float) -> None:
        """Say that a run is about to be made here, so that every client finds it."""
        self._has_runs = True
        self.databases.remember(run_id, self.database.number, created_at=created_at)

    def _tell(self, what: Any) -> None:
        if self._guard is not None and self._guard.stdin is not None:
            # Closed: it was closed before.
            with suppress(BrokenPipeError, ValueError):
                text = what if isinstance(what, str) else json.dumps(what)
                self._guard.stdin.write(f"{text}\n".encode())
                self._guard.stdin.flush()

    def check(self) -> None:
        """Make sure that the fleet is still there.

        Raises:
            SettingsError: The worker does not start with these settings.
            EmbeddedError: The worker has stopped.
        """
        self._server.check()
        if self._guard is None or self._guard.poll() is None:
            return
        # Of itself it ends when its worker does not start; killed, it has not given up.
        if self._guard.returncode >= 0 or self._restarts == _MAX_RESTARTS:
            tail = log_tail(self._folder / _LOG).removeprefix("fanout: ")
            if self._guard.returncode == _USAGE:
                raise SettingsError(f"the embedded worker does not start: {tail}")
            raise EmbeddedError(f"the embedded worker has stopped: {tail}")
        self._restarts += 1
        self._forget_guard()
        self._guard = self._start_guard()
        self._tell_place(self.database)

    def _forget_guard(self) -> None:
        if self._guard is not None and self._guard.stdin is not None:
            with suppress(BrokenPipeError):
                self._guard.stdin.close()
            self._guard.wait()

    def close(self) -> None:
        """Stop the worker; what its runs have given stays. Safe to call twice."""
        atexit.unregister(self.close)
        self._tell("end")
        self._forget_guard()
        self._release()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _release(self) -> None:
        known = vars(self)
        database = known.get("database") or self._taken_over
        if "databases" in known:
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


class InProcessFleet:
    """A database of the embedded server, and a worker in a thread of this process.

    Celery keeps a worker's state in globals, so there is one at a time: it is shared by all who
    ask for it, and stops with the last of them.
    """

    _lock = threading.RLock()
    _shared: InProcessFleet | None = None

    @classmethod
    def acquire(cls, *, concurrency: int, database: Database | None = None) -> InProcessFleet:
        """Return the fleet of this process.

        Its worker's concurrency is fixed when it is started, so that is made ample: what a run
        may have in flight is bounded by its ``max_workers``, not by the worker.

        Args:
            concurrency: Branches that its worker must be able to have in flight.
            database: The database of a client that has died; a new one where it is None.

        Raises:
            RunError: ``database`` is given, and this process has a worker for another one.
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
        self._is_stopped = False
        self._server = EmbeddedFleet(concurrency=0, database=database)
        self.concurrency = concurrency
        try:
            self._worker: Any = self._start_worker()
        except BaseException:
            self._server.close()
            raise
        atexit.register(self._stop)

    def _start_worker(self) -> Any:
        # The server starts meanwhile.
        make_worker = load_program("in_process")
        settings = load_settings(broker_url=self.broker_url)
        if not settings.allowed_callables:
            # What this process names, it may import.
            settings = settings.model_copy(update={"allowed_callables": ("*",)})
        worker = make_worker(settings, concurrency=self.concurrency)
        worker.start()
        return worker

    @property
    def database(self) -> Database:
        """The fleet's own."""
        return self._server.database

    @property
    def broker_url(self) -> str:
        """The database's URL."""
        return self._server.broker_url

    def remember(self, run_id: str, *, created_at: float) -> None:
        """Say that a run is about to be made here, so that every client finds it."""
        self._server.remember(run_id, created_at=created_at)

    def check(self) -> None:
        """Make sure that the fleet is still there. Raises EmbeddedError."""
        self._server.check()
        self._worker.check()

    def close(self) -> None:
        """Give the fleet back; the last one stops it."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._stop()

    def _stop(self) -> None:
        atexit.unregister(self._stop)
        with self._lock:
            if self._is_stopped:
                return
            self._is_stopped = True
            if InProcessFleet._shared is self:
                InProcessFleet._shared = None
            self._worker.stop()
            self._server.close()
