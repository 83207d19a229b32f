"""The connections of a client: to its broker, or to the fleets that it embeds."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from fanout.client.arguments import checked_count
from fanout.client.embedded.fleet import EmbeddedFleet, InProcessFleet
from fanout.client.polls import polls
from fanout.client.run_ids import new_run_id
from fanout.client.step_functions import check_functions
from fanout.core.errors import BrokerError, RunError, SpecError, UnknownRunError
from fanout.core.lanes import first_lane, takes_lane
from fanout.core.plan_runs import plan_run
from fanout.core.settings import load_settings
from fanout.inputs.documents import Notice
from fanout.inputs.intake import checked_documents
from fanout.llm.callables import is_callable_model

# Broker modules are imported on use, so that an embedded fleet starts meanwhile.
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Self

    from fanout.client.connections import Connections
    from fanout.client.embedded_runs import EmbeddedRuns
    from fanout.client.passages import Passages
    from fanout.core.spec import RunSpec
    from fanout.core.state import RunRecord
    from fanout.inputs.documents import Chunks, Notify
    from fanout.stores import RedisStore

__all__ = ["ConnectedClient"]

_AWAY = "the broker does not answer; the run begins when it does"


class ConnectedClient:
    """What connects a client; see ``Client``."""

    def __init__(self, broker_url: str | None = None, *, concurrency: int | None = None) -> None:
        self._settings = load_settings(broker_url=broker_url)
        self._given_concurrency = checked_count("concurrency", concurrency)
        if self._given_concurrency is not None and not self.is_embedded:
            raise SpecError(
                "has no effect with a broker, whose workers have their own; leave it out, and give "
                "it to the workers (fanout worker --concurrency)",
                field="concurrency",
            )
        self._concurrency = self._given_concurrency or self._settings.concurrency
        self._lock = threading.Lock()
        # Whether the embedded worker is in this process; None until the first job.
        self._is_here: bool | None = None
        self._here_lock = threading.Lock()
        self._told = set[str]()
        self._fleet: EmbeddedFleet | None = None
        self._connections: Connections | None = None
        self._embedded_runs: EmbeddedRuns | None = None
        if self._settings.broker_url is not None:
            self._connections = self._connect()

    @property
    def is_embedded(self) -> bool:
        """Whether the fleet is this client's own."""
        return self._settings.broker_url is None

    @property
    def keeps_runs(self) -> bool:
        """Whether this client's runs outlive it."""
        return self._fleet is None or self._fleet.keeps

    def goes_on_without(self, run_id: str) -> bool:
        """Return whether a run has workers that are not this client's. Raises BrokerError."""
        if not self.is_embedded:
            return True
        is_own = self._connections_of(run_id) is self._connections
        return not is_own and self._embedded().has_other_worker(run_id)

    @property
    def broker_url(self) -> str | None:
        """The server's URL, with its credentials; None before an embedded one has started."""
        return self._fleet.broker_url if self._fleet is not None else self._settings.broker_url

    def has_functions(self, models: Iterable[str]) -> bool:
        """Return whether the embedded worker is in this process, whose functions it has.

        The first job decides it, by what it calls; others may come at the same time, of other threads.
        """
        with self._here_lock:
            if self._is_here is None:
                self._is_here = any(map(is_callable_model, models))
            return self._is_here

    def _connected(self, models: Iterable[str] = ()) -> Connections:
        # Threads that submit their first runs at the same time share one fleet.
        with self._lock:
            if self._connections is None:
                if not models:
                    raise BrokerError(
                        "no run was submitted yet, and no broker is configured: an embedded fleet "
                        "is there while its client has runs"
                    )
                is_here = self.has_functions(models)
                start = InProcessFleet.acquire if is_here else EmbeddedFleet
                self._fleet = start(concurrency=self._concurrency)
                try:
                    self._connections = self._connect()
                except BaseException:
                    self._fleet.close()
                    self._fleet = None
                    raise
            return self._connections

    def _connect(self) -> Connections:
        # First, as this import takes as long as the start of a fleet.
        from fanout.client.connections import Connections

        if self._fleet is None:
            return Connections(self._settings)
        return Connections(load_settings(broker_url=self._fleet.broker_url))

    def _embedded(self) -> EmbeddedRuns:
        """Return the runs of all embedded clients."""
        from fanout.client.embedded_runs import EmbeddedRuns

        with self._lock:
            if self._embedded_runs is None:
                self._embedded_runs = EmbeddedRuns(concurrency=self._concurrency)
            return self._embedded_runs

    def _connections_of(self, run_id: str) -> Connections:
        """Return the connections to the server of a run. Raises UnknownRunError."""
        if self._connections is not None or not self.is_embedded:
            connections = self._connected()
            with suppress(UnknownRunError):
                connections.store.run(run_id)
                return connections
        if not self.is_embedded:
            raise UnknownRunError(run_id)
        return self._embedded().connections(run_id)

    @property
    def concurrency(self) -> int:
        """Branches in flight of the embedded worker."""
        return self._concurrency

    def known_store(self) -> RedisStore | None:
        """Return a store with what runs have shown of models, without starting a fleet."""
        if self._connections is not None or not self.is_embedded:
            return self._connected().store
        return self._embedded().known_store()

    def _tell(self, lines: Iterable[str], notify: Notify) -> None:
        """Say each line once for all runs of this client."""
        for line in lines:
            if line not in self._told:
                self._told.add(line)
                notify(Notice(text=line))

    def _require_ready(
        self,
        connections: Connections,
        spec: RunSpec,
        notify: Notify,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        """Check all that a run of a job needs of the fleet, before there is one.

        A server that this client has reached may be away for a while, as it may during the run. What
        is asked changes nothing, and is asked again.
        """
        # The connections have imported it.
        from fanout.client.run import AWAY_S

        away_at: float | None = None
        for _ in polls(None):
            try:
                connections.claim()
                connections.require_storage()
                self._preflight(connections, spec, should_stop)
            except BrokerError as error:
                now = time.monotonic()
                away_at = now if away_at is None else away_at
                if error.is_refusal or not error.is_passing or now - away_at >= AWAY_S:
                    raise
                self._tell([_AWAY], notify)
                self._check_not_stopped(should_stop)
            else:
                return

    def _check_not_stopped(self, should_stop: Callable[[], bool] | None) -> None:
        self._check_fleet()
        if should_stop is not None and should_stop():
            raise RunError("the run was stopped before it began")

    def _preflight(
        self,
        connections: Connections,
        spec: RunSpec,
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        """Check that a worker can use the models; stop to wait for it when the caller says so."""
        check = partial(self._check_not_stopped, should_stop)
        check_functions(connections, spec.steps, check=check, wait=self.is_embedded)
        for function in (*spec.retrieval_functions, *spec.embed_functions):
            connections.preflight(function, check=check, wait=self.is_embedded)
        for model in spec.all_models:
            batches = first_lane(spec.lane) == "batch" and takes_lane(model, "batch")
            connections.preflight(model, check=check, wait=self.is_embedded, batches=batches)

    def _create_run(self, connections: Connections, spec: RunSpec, passages: Passages) -> str:
        """Create the record of a run, after the indexes that it needs; return the run's id."""
        run_id = new_run_id()
        names = passages.stored(connections.patient, run_id, spec)
        # A second time, as the check of the model may have taken long.
        connections.claim()
        now = connections.store.now()
        if self._fleet is not None:
            # Before the run exists: a run that no client finds would be lost with this process.
            self._fleet.remember(run_id, created_at=now)
            if spec.split == "model":
                self._fleet.remember(plan_run(run_id), created_at=now)
        connections.create_run(run_id, spec, created_at=now, passages=names)
        return run_id

    def _require_same(
        self, connections: Connections, record: RunRecord, spec: RunSpec, documents: Chunks
    ) -> None:
        """Make sure that documents are the input that a run has read. Raises RunError."""
        source = checked_documents(spec, documents)
        if spec.split == "model":
            from fanout.client.model_splitting import require_same_pieces

            require_same_pieces(connections, record.run_id, spec, source)
        else:
            connections.require_same(record, spec, source)

    def _check_storage(self) -> None:
        if self._settings.storage is not None:
            from fanout.stores.blobs import check_storage

            check_storage(self._settings.storage)

    def _check_fleet(self) -> None:
        if self._fleet is not None:
            self._fleet.check()

    def close(self) -> None:
        """Release connections, and stop an embedded fleet. Safe to call twice."""
        for part in (self._connections, self._fleet, self._embedded_runs):
            if part is not None:
                part.close()
        self._connections = self._fleet = self._embedded_runs = None
        self._is_here = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
