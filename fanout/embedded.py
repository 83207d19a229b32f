"""A whole fleet for one process: a Valkey server and a worker, started on demand.

Two kinds. ``EmbeddedFleet`` runs its worker as a child process. ``InProcessFleet`` runs it in a
thread of the calling process, for functions that another process could not import.
"""

from __future__ import annotations

import atexit
import importlib
import json
import logging
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from fanout.errors import BrokerError, EmbeddedError
from fanout.settings import check_traces, load_settings

if TYPE_CHECKING:
    from typing import Self

__all__ = ["EmbeddedFleet", "InProcessFleet"]

_START_S = 30.0
_LOG_TAIL = 2_000
_SHARED_CONCURRENCY = 64

_log = logging.getLogger(__name__)


class EmbeddedFleet:
    """A Valkey server and, unless ``concurrency`` is 0, one worker process.

    Both end when the fleet is closed, and when the calling process ends, whatever way it ends.
    They start in the background: ``broker_url`` is known, and waited for, when the server answers.
    """

    def __init__(self, *, concurrency: int) -> None:
        check_traces(load_settings())
        self._folder = Path(tempfile.mkdtemp(prefix="fanout-"))
        try:
            self._guard = self._start_guard(concurrency)
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        atexit.register(self.close)

    def _start_guard(self, concurrency: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "fanout.embedded_guard", str(self._folder)]
        # What this process can import, its worker can: functions are named by dotted path.
        paths = [path or str(Path.cwd()) for path in sys.path]
        with (self._folder / "guard.log").open("wb") as log:
            return subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [*command, str(concurrency)],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                # Ctrl-C is for the caller, who then decides what becomes of the run.
                start_new_session=True,
            )

    @cached_property
    def broker_url(self) -> str:
        """The server's URL, with its password. Raises EmbeddedError where it does not start."""
        stdout = cast("IO[bytes]", self._guard.stdout)
        line = stdout.readline() if select.select([stdout], [], [], _START_S)[0] else b""
        if not line:
            raise EmbeddedError(f"the embedded server did not start: {self._tail('guard.log')}")
        return str(json.loads(line)["broker_url"])

    def _tail(self, name: str) -> str:
        try:
            text = (self._folder / name).read_text(errors="replace")[-_LOG_TAIL:].strip()
        except OSError:
            return "it left no log"
        return text or "its log is empty"

    def check(self) -> None:
        """Make sure that the fleet is still there. Raises EmbeddedError."""
        if self._guard.poll() is not None:
            tail = self._tail("worker.log")
            raise EmbeddedError(f"the embedded server or worker has stopped: {tail}")

    def close(self) -> None:
        """Stop the worker and the server, and remove their files. Safe to call twice."""
        atexit.unregister(self.close)
        self._forget_files()
        if self._guard.stdin is not None and not self._guard.stdin.closed:
            self._guard.stdin.close()
        self._guard.wait()
        if self._guard.stdout is not None:
            self._guard.stdout.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _forget_files(self) -> None:
        """Delete what runs have kept outside the server, which is about to forget them."""
        settings = load_settings()
        was_used = "broker_url" in vars(self) and self._guard.poll() is None
        if settings.storage is None or not was_used:
            return
        from fanout.stores import RedisStore, connect
        from fanout.stores.blobs import make_blobs

        blobs = make_blobs(settings.storage)
        store = RedisStore(connect(self.broker_url), prefix=settings.key_prefix, blobs=blobs)
        try:
            store.sweep_files(everything=True)
        except BrokerError as error:
            _log.warning("files of embedded runs stay in %s: %s", settings.storage, error)
        finally:
            store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class InProcessFleet:
    """A Valkey server, and a worker in a thread of this process.

    Celery keeps a worker's state in globals, so there is one at a time: it is shared by all who
    ask for it, and stops with the last of them.
    """

    _lock = threading.RLock()
    _shared: InProcessFleet | None = None

    @classmethod
    def acquire(cls, *, concurrency: int) -> InProcessFleet:
        """Return the fleet of this process.

        Its worker's concurrency is fixed when it is started, so that is made ample: what a run
        may have in flight is bounded by its ``max_workers``, not by the worker.
        """
        with cls._lock:
            if cls._shared is None:
                cls._shared = cls(concurrency=max(concurrency, _SHARED_CONCURRENCY))
            fleet = cls._shared
            fleet._users += 1  # noqa: SLF001 - our own class
            return fleet

    def __init__(self, *, concurrency: int) -> None:
        self._users = 0
        self._is_stopped = False
        self._server = EmbeddedFleet(concurrency=0)
        self.concurrency = concurrency
        try:
            self._worker: Any = self._start_worker()
        except BaseException:
            self._server.close()
            raise
        atexit.register(self._stop)

    def _start_worker(self) -> Any:
        # By name, as the workers import this package and not the other way round. The server
        # starts meanwhile.
        thread = importlib.import_module("workers.thread")
        self.broker_url = self._server.broker_url
        settings = load_settings(broker_url=self.broker_url)
        if not settings.allowed_callables:
            # What this process names, it may import.
            settings = settings.model_copy(update={"allowed_callables": ("*",)})
        worker = thread.WorkerThread(settings, concurrency=self.concurrency)
        worker.start()
        return worker

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
