"""Finds the embedded runs of this user in their databases, and resumes them."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from fanout.client.connections import Connections
from fanout.client.embedded.databases import Databases
from fanout.client.embedded.fleet import EmbeddedFleet, InProcessFleet, use_server
from fanout.core.errors import RunError, UnknownRunError
from fanout.core.settings import load_settings
from fanout.core.spec import stored_spec
from fanout.llm.callables import is_callable_model, is_registered
from fanout.system.open_files import fitting_concurrency

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.client.run import Run
    from fanout.core.state import RunRecord
    from fanout.stores import RedisStore

__all__ = ["EmbeddedRuns"]

# Seconds between two checks that a run still has a worker.
_LOOK_S = 0.3


class EmbeddedRuns:
    """All embedded runs of a user, and the workers that resume them; close after use.

    Args:
        concurrency: Branches in flight of a worker that resumes a run without ``max_workers``.

    Raises:
        EmbeddedError: The server does not start, or its folder cannot be used.
        BrokerError: The server does not answer.
    """

    def __init__(self, *, concurrency: int = 1) -> None:
        self._concurrency = concurrency
        self._server = use_server()
        try:
            self._databases = Databases(self._server, load_settings())
        except BaseException:
            self._server.release()
            raise
        # Threads share the connections to one database.
        self._lock = threading.RLock()
        self._by_database: dict[int, Connections] = {}
        self._fleets: dict[int, EmbeddedFleet] = {}

    def connections(self, run_id: str) -> Connections:
        """Return the connections to the database of a run. Raises UnknownRunError."""
        connections = self._connections_to(self._database_of(run_id))
        try:
            connections.store.run(run_id)
        except UnknownRunError:
            raise self.unknown(run_id) from None
        return connections

    def _database_of(self, run_id: str) -> int:
        location = self._databases.location(run_id)
        if location is None:
            raise self.unknown(run_id)
        return location.database

    def unknown(self, run_id: str) -> UnknownRunError:
        """Return the error about a run that does not exist."""
        return UnknownRunError(run_id, f"kept in {self._server.folder.path}")

    def run(self, run_id: str) -> Run:
        """Return the handle of a run, whose wait keeps a worker alive. Raises UnknownRunError."""
        due_at = 0.0

        def keep_worker() -> None:
            nonlocal due_at
            now = time.monotonic()
            if now >= due_at:
                due_at = now + _LOOK_S
                self.work_on(run_id)

        return self.connections(run_id).run(run_id, keep_worker)

    def records(self, prefix: str = "") -> Iterator[RunRecord]:
        """Yield the runs whose ids begin with ``prefix``, the newest first."""
        for run_id, location in self._databases.locations().items():
            if run_id.startswith(prefix):
                # It may have expired, be deleted, or have another key prefix.
                with suppress(UnknownRunError):
                    yield self._connections_to(location.database).store.run(run_id)

    def known_store(self) -> RedisStore:
        """Return a store with what the newest run has shown of models."""
        return self._databases.gather()

    def work_on(self, run_id: str) -> None:
        """Make sure that a run has a worker: its client's, or one that is started here.

        Raises:
            UnknownRunError: There is no such run.
            RunError: It calls a function that lives in another process.
            SettingsError: The worker does not start with these settings.
            EmbeddedError: The worker or the server has stopped.
        """
        database = self._database_of(run_id)
        with self._lock:
            self._server.check()
            fleet = self._fleets.get(database)
            if fleet is not None:
                fleet.check()
            elif not self._databases.is_owned(database):
                self._take_over(run_id, database)

    def has_other_worker(self, run_id: str) -> bool:
        """Return whether another process works on a run."""
        location = self._databases.location(run_id)
        if location is None or location.database in self._fleets:
            return False
        return self._databases.is_owned(location.database)

    def _take_over(self, run_id: str, number: int) -> None:
        spec = stored_spec(self._connections_to(number).store.spec(run_id))
        for model in spec.all_models:
            _require_function(run_id, model)
        for step in spec.steps:
            given = f"functions={{{step.name!r}: FUNCTION}}"
            _require_function(run_id, step.function or "", given=given)
        for field, functions in (
            ("retrieve", spec.retrieval_functions),
            ("embed", spec.embed_functions),
        ):
            for function in functions:
                _require_function(run_id, function, given=f"{field}=FUNCTION")
        database = self._databases.take_over(number)
        if database is None:
            return
        # A run may come from a process with a higher limit: fewer branches at once are allowed.
        concurrency = max(1, fitting_concurrency(spec.max_workers or self._concurrency))
        is_here = any(map(is_callable_model, spec.all_called))
        start = InProcessFleet.acquire if is_here else EmbeddedFleet
        try:
            self._fleets[number] = start(concurrency=concurrency, database=database)
        except BaseException:
            database.release()
            raise

    def _connections_to(self, number: int) -> Connections:
        with self._lock:
            if number not in self._by_database:
                settings = load_settings(broker_url=self._server.url(number))
                self._by_database[number] = Connections(settings)
            return self._by_database[number]

    def close(self) -> None:
        """Release connections, and stop the workers that were started here."""
        for connections in self._by_database.values():
            connections.close()
        for fleet in self._fleets.values():
            fleet.close()
        self._databases.close()
        self._server.release()


def _require_function(run_id: str, model: str, *, given: str = "") -> None:
    """Check that this process has a function; ``given`` is what gives it to ``resume``, if not ``llm``."""
    if is_callable_model(model) and not is_registered(model):
        name = model.partition(":")[2].rpartition("-")[0]
        runner = "ParallelCalls()" if given else "ParallelCalls(llm=FUNCTION)"
        call = f"{runner}.resume({run_id!r}{given and f', {given}'})"
        raise RunError(
            f"run {run_id} calls the function {name} of a Python process that has ended; what it "
            f"gave is kept: `fanout results {run_id}`. To go on, call "
            f"{call} in a program that has the function"
        )
