"""``Client``: submits runs and finds them again."""

from __future__ import annotations

import operator
import secrets
import threading
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex, cast

from fanout.client.embedded.fleet import EmbeddedFleet, InProcessFleet
from fanout.core.errors import (
    AmbiguousRunError,
    BrokerError,
    RunError,
    SettingsError,
    SpecError,
    UnknownRunError,
)
from fanout.core.field_effects import require_used
from fanout.core.ids import StageId
from fanout.core.settings import load_settings
from fanout.core.spec import RunSpec, make_spec
from fanout.inputs.documents import log_notice
from fanout.inputs.intake import checked_documents
from fanout.llm.callables import takes_prompt_only
from fanout.runs.enqueue import Enqueuer, close_input
from fanout.system.open_files import open_files_problem

# Broker modules are imported on use, so that an embedded fleet starts meanwhile.
if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator
    from typing import Self

    from fanout.broker.app import Preflight
    from fanout.client.connections import Connections
    from fanout.client.embedded_runs import EmbeddedRuns
    from fanout.client.run import Run
    from fanout.core.records import Document, RunStatus
    from fanout.core.settings import Settings
    from fanout.inputs.documents import Notify
    from fanout.observe.fleet import FleetStatus
    from fanout.stores import RunRecord

__all__ = ["Client", "checked_count"]

# Crockford's base 32: no letter that reads like a digit.
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_ID_LENGTH = 8
# No id equals this word, as not all its letters are in the alphabet.
LATEST = "latest"


class Client:
    """Submits runs to a fleet and follows them. Safe to share between threads.

    Args:
        broker_url: The Redis server of the fleet; ``FANOUT_BROKER_URL`` where it is None. Where
            neither is given, a fleet of one worker is embedded: it ends with the client. Its runs
            stay in ``FANOUT_STATE_DIR``, and any embedded client of the user can go on with them.
        concurrency: Branches in flight of the embedded worker; refused with a broker, whose workers
            have their own.

    Raises:
        SettingsError: A ``FANOUT_*`` variable is wrong.
        SpecError: ``concurrency`` is wrong, or of no effect.
        BrokerError: No broker answers.
    """

    def __init__(self, broker_url: str | None = None, *, concurrency: int | None = None) -> None:
        self._settings = load_settings(broker_url=broker_url)
        given = checked_count("concurrency", concurrency)
        if given is not None and not self.is_embedded:
            raise SpecError(
                "has no effect with a broker, whose workers have their own; leave it out, and give "
                "it to the workers (fanout worker --concurrency)",
                field="concurrency",
            )
        self._has_concurrency = given is not None
        self._concurrency = given or self._settings.concurrency
        self._lock = threading.Lock()
        self._fleet: EmbeddedFleet | InProcessFleet | None = None
        self._connections: Connections | None = None
        self._embedded_runs: EmbeddedRuns | None = None
        if self._settings.broker_url is not None:
            self._connections = _connect(self._settings)

    @property
    def is_embedded(self) -> bool:
        """Whether the fleet is this client's own."""
        return self._settings.broker_url is None

    @property
    def keeps_runs(self) -> bool:
        """Whether this client's runs outlive it."""
        return not isinstance(self._fleet, EmbeddedFleet) or self._fleet.keeps

    def goes_on_without(self, run_id: str) -> bool:
        """Return whether a run has workers that are not this client's. Raises BrokerError."""
        if not self.is_embedded:
            return True
        is_own = self._is_own(self._connections_of(run_id))
        return not is_own and self._embedded().has_other_worker(run_id)

    @property
    def broker_url(self) -> str | None:
        """The server, with its credentials; None while an embedded one is not started yet."""
        return self._fleet.broker_url if self._fleet is not None else self._settings.broker_url

    def _connected(self, model: str | None = None) -> Connections:
        # Two threads that submit their first runs at once share one fleet.
        with self._lock:
            if self._connections is None:
                if model is None:
                    raise BrokerError(
                        "no run was submitted yet, and no broker is configured: an embedded fleet "
                        "is there while its client has runs"
                    )
                fleet = self._start_fleet(model)
                try:
                    self._connections = _connect(fleet)
                except BaseException:
                    fleet.close()
                    raise
                self._fleet = fleet
            return self._connections

    def _start_fleet(self, model: str) -> EmbeddedFleet | InProcessFleet:
        if model.startswith("callable:"):
            return InProcessFleet.acquire(concurrency=self._concurrency)
        return EmbeddedFleet(concurrency=self._concurrency)

    def _embedded(self) -> EmbeddedRuns:
        """Return the runs of all embedded clients."""
        from fanout.client.embedded_runs import EmbeddedRuns

        with self._lock:
            if self._embedded_runs is None:
                self._embedded_runs = EmbeddedRuns(concurrency=self._concurrency)
            return self._embedded_runs

    def _connections_of(self, run_id: str) -> Connections:
        """Return the connections to where a run is. Raises UnknownRunError."""
        if self._connections is not None or not self.is_embedded:
            connections = self._connected()
            with suppress(UnknownRunError):
                connections.store.run(run_id)
                return connections
        if not self.is_embedded:
            raise UnknownRunError(run_id)
        return self._embedded().connections(run_id)

    def _is_own(self, connections: Connections) -> bool:
        return connections is self._connections

    def submit(
        self,
        spec: RunSpec | Mapping[str, Any],
        documents: Iterable[str | Mapping[str, object] | Document] | None = None,
        *,
        on_bad_document: Callable[[str, str], None] | None = None,
        on_notice: Notify = log_notice,
        on_created: Callable[[str], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Run:
        """Split the input, publish it, and return the run.

        Reading, splitting and publishing go on while workers process the first branches.

        Args:
            spec: What to do.
            documents: The input, where it is not in files; read lazily.
            on_bad_document: Called with name and reason of each document that cannot be used.
            on_notice: Called with notices about the input, such as files that are
                left out; the logger ``fanout.inputs.documents`` says it where nothing is given.
            on_created: Called with the run's id as soon as there is a run.
            should_stop: Asked before each shard; True ends the reading and cancels the run.

        Raises:
            SpecError: A field is wrong, or a prompt has an unknown name.
            InputError: There is no usable document at all.
            ModelError: The model cannot be used; found out before anything is enqueued.
            SettingsError: ``FANOUT_STORAGE`` cannot be written to, or is not the fleet's.
            WireVersionError: The fleet has another version of fanout.
            BrokerError: The broker cannot be reached.
        """
        spec = spec if isinstance(spec, RunSpec) else _spec_of(spec)
        require_used(spec, is_function=takes_prompt_only(spec.model))
        if documents is None:
            spec = _anchored(spec)
        elif spec.inputs:
            raise SpecError("give either chunks or inputs, and not both", field="inputs")
        source = checked_documents(spec, documents, notify=on_notice)
        self._check_storage()
        self._require_open_files(spec)
        connections = self._connected(spec.model)
        connections.claim()
        connections.require_storage()
        connections.preflight(spec.model, check=self._check_fleet, wait=self.is_embedded)
        run_id = self._create_run(connections, spec)
        if on_created is not None:
            on_created(run_id)
        enqueuer = Enqueuer(
            connections.patient, connections.publisher, on_bad_document, should_stop
        )
        with _resumable(run_id):
            enqueuer.enqueue(run_id, spec, source, max_workers=self._cap(spec))
        return self.run(run_id)

    def _require_open_files(self, spec: RunSpec) -> None:
        """Make sure that the embedded worker may have its open files, before it is started."""
        problem = open_files_problem(self._concurrency, setting="it")
        if not self.is_embedded or self._fleet is not None or problem is None:
            return
        if self._concurrency == spec.max_workers:
            raise SpecError(problem, field="max_workers")
        if self._has_concurrency:
            raise SpecError(problem, field="concurrency")
        raise SettingsError(f"FANOUT_CONCURRENCY: {problem}")

    def _create_run(self, connections: Connections, spec: RunSpec) -> str:
        """Create the record of a run, and return the run's id."""
        run_id = "".join(secrets.choice(_ALPHABET) for _ in range(_ID_LENGTH))
        # Again, as the check of the model may have taken long.
        connections.claim()
        now = connections.store.now()
        if self._fleet is not None:
            # First, as a run that no client finds would be lost with this process.
            self._fleet.remember(run_id, created_at=now)
        connections.store.create_run(
            run_id,
            spec=spec.model_dump_json(),
            created_at=now,
            deadline_at=None if spec.deadline_s is None else now + spec.deadline_s,
            wire=connections.version,
        )
        return run_id

    def resume(
        self,
        run_id: str,
        documents: Iterable[str | Mapping[str, object] | Document] | None = None,
        *,
        on_bad_document: Callable[[str, str], None] | None = None,
        on_notice: Notify = log_notice,
        should_stop: Callable[[], bool] | None = None,
    ) -> Run:
        """Go on with enqueuing a run whose client died while it did so, and return the run.

        What was enqueued is compared with the input, and the rest is enqueued. A run of which all
        was enqueued is left as it is. Harmless while the first client lives, and by two at once.

        Args:
            run_id: The run.
            documents: The same input again, where it is not in the files that the run remembers.
            on_bad_document: As for ``submit``.
            on_notice: As for ``submit``.
            should_stop: As for ``submit``.

        Raises:
            UnknownRunError: There is no such run.
            RunError: The input is not the same as before; also where all of that was enqueued.
            InputError: The input cannot be read.
            WireVersionError: The fleet has another version of fanout.
            BrokerError: The broker cannot be reached.
        """
        run = self.run(run_id)
        connections = self._connections_of(run_id)
        connections.claim()
        record = connections.store.run(run_id)
        if not record.has_ended and self.is_embedded and not self._is_own(connections):
            # The first shards are processed while the rest is read.
            self._embedded().work_on(run_id)
        if record.has_ended or connections.store.stage(StageId(run_id, 0)).sealed:
            if documents is not None:
                self._require_same(connections, record, run.spec, documents)
            return run
        if record.halt is not None:
            close_input(connections.store, connections.publisher, run_id)
            return run
        source = checked_documents(run.spec, documents, notify=on_notice)
        self._check_storage()
        connections.require_storage()
        enqueuer = Enqueuer(
            connections.patient, connections.publisher, on_bad_document, should_stop
        )
        with _resumable(run_id):
            enqueuer.resume(run_id, run.spec, source, max_workers=self._cap(run.spec))
        return run

    def _require_same(
        self,
        connections: Connections,
        record: RunRecord,
        spec: RunSpec,
        documents: Iterable[str | Mapping[str, object] | Document],
    ) -> None:
        """Make sure that an input that is not needed any more is the one that was read."""
        try:
            Enqueuer(connections.store, connections.publisher).compare(
                record, spec, checked_documents(spec, documents)
            )
        except RunError as error:
            where = f"has ended ({record.status.value})" if record.has_ended else "goes on"
            raise RunError(
                f"run {record.run_id} {where}, and takes no further input: {error}; "
                "`fanout run` or `fanout submit` begins another run"
            ) from error

    def heal(self) -> int:
        """Look for what got lost, and do it again, at once: the workers do so by themselves.

        Returns:
            How many steps were done again.

        Raises:
            WireVersionError: The fleet has another version of fanout.
            BrokerError: The broker cannot be reached.
        """
        from fanout.runs.reaper import Reaper

        connections = self._connected()
        connections.claim(needs_room=False)
        return Reaper(
            connections.store, connections.publisher, connections.messages, stall_s=0.0
        ).heal_now()

    def _cap(self, spec: RunSpec) -> int | None:
        """Return ``max_workers``, or None where the embedded worker cannot exceed it anyway."""
        is_alone = isinstance(self._fleet, EmbeddedFleet)
        if spec.max_workers is not None and is_alone and self._concurrency <= spec.max_workers:
            return None
        return spec.max_workers

    def run(self, run_id: str) -> Run:
        """Return a run by its id. Raises UnknownRunError."""
        connections = self._connections_of(run_id)
        if self._is_own(connections):
            return connections.run(run_id, self._check_fleet)
        return self._embedded().run(run_id)

    def find(self, prefix: str) -> Run:
        """Return the run whose id is, or alone begins with, ``prefix``; ``latest`` is the newest.

        Raises:
            UnknownRunError: There is no such run.
            AmbiguousRunError: There are several.
        """
        if prefix != LATEST:
            with suppress(UnknownRunError):
                return self.run(prefix)
        found = list(islice(self._records(), 1) if prefix == LATEST else self._records(prefix))
        # A variable of a script that is empty does not mean the only run.
        if not prefix or not found:
            raise self._embedded().unknown(prefix) if self.is_embedded else UnknownRunError(prefix)
        if len(found) > 1:
            raise AmbiguousRunError(prefix, {run.run_id: run.status.value for run in found})
        return self.run(found[0].run_id)

    def _records(self, prefix: str = "") -> Iterator[RunRecord]:
        """Yield the runs whose ids begin so, the newest first."""
        if self.is_embedded:
            return self._embedded().records(prefix)
        return self._connected().store.runs(prefix)

    def runs(self, statuses: Container[RunStatus] | None = None) -> Iterator[Run]:
        """Yield the runs that have not expired, the newest first.

        Args:
            statuses: Only those that are in one of these; None is all.
        """
        for record in self._records():
            if statuses is None or record.status in statuses:
                # It may have expired in the meantime.
                with suppress(UnknownRunError):
                    yield self.run(record.run_id)

    def workers(self) -> dict[str, int]:
        """Return the concurrency of each live worker, by name."""
        return {worker.name: worker.concurrency for worker in self._connected().store.workers()}

    def fleet(self, run_id: str | None = None) -> FleetStatus:
        """Return what the whole fleet is doing.

        Args:
            run_id: A run of the fleet that is meant: embedded runs have one each.

        Raises:
            UnknownRunError: There is no such run.
            BrokerError: The broker cannot be reached.
        """
        from fanout.observe.fleet import fleet_status

        connections = self._connected() if run_id is None else self._connections_of(run_id)
        return fleet_status(connections.store, connections.redis)

    def check_model(self, model: str, *, timeout_s: float) -> Preflight | None:
        """Have a worker say whether a model can be used; None where none says so in time.

        Raises:
            WireVersionError: The fleet has another version of fanout.
            BrokerError: The broker cannot be reached.
        """
        connections = self._connected(model)
        connections.claim()

        def is_over() -> bool:
            self._check_fleet()
            return False

        return connections.ask(model, timeout_s=timeout_s, is_over=is_over)

    def _check_storage(self) -> None:
        if self._settings.storage is not None:
            from fanout.stores.blobs import check_storage

            check_storage(self._settings.storage)

    def _check_fleet(self) -> None:
        if self._fleet is not None:
            self._fleet.check()

    def close(self) -> None:
        """Release connections, and stop an embedded fleet. Safe to call twice."""
        if self._connections is not None:
            self._connections.close()
            self._connections = None
        if self._fleet is not None:
            self._fleet.close()
            self._fleet = None
        if self._embedded_runs is not None:
            self._embedded_runs.close()
            self._embedded_runs = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def _spec_of(fields: Any) -> RunSpec:
    if not isinstance(fields, Mapping):
        kind = type(fields).__name__
        raise SpecError(
            f"must be a RunSpec, or a dict of its fields such as model and prompt (got {kind})",
            field="spec",
        )
    return make_spec(**fields)


def checked_count(name: str, value: object) -> int | None:
    """Return a count that a caller gives, or None.

    Raises:
        SpecError: It is no whole number from 1 on.
    """
    if value is None:
        return None
    # A number of numpy's is one, true is none.
    is_whole = hasattr(value, "__index__") and not isinstance(value, bool)
    count = operator.index(cast("SupportsIndex", value)) if is_whole else 0
    if count < 1:
        raise SpecError(f"must be a whole number from 1 on (got {value!r})", field=name)
    return count


def _connect(server: Settings | EmbeddedFleet | InProcessFleet) -> Connections:
    # First, as it takes as long as a fleet does to start.
    from fanout.client.connections import Connections

    if isinstance(server, (EmbeddedFleet, InProcessFleet)):
        server = load_settings(broker_url=server.broker_url)
    return Connections(server)


def _anchored(spec: RunSpec) -> RunSpec:
    """Return a spec whose inputs mean the same files from any working directory."""
    anchored = spec.model_copy(update={"base_dir": str(Path(spec.base_dir or "").absolute())})
    if "base_dir" not in spec.model_fields_set:
        # The user did not set it, so it need not have an effect.
        anchored.model_fields_set.discard("base_dir")
    return anchored


@contextmanager
def _resumable(run_id: str) -> Iterator[None]:
    """Say of a server that went away while a run was enqueued how to go on."""
    try:
        yield
    except BrokerError as error:
        raise BrokerError(
            f"{error}; run {run_id} is enqueued in part: `fanout resume {run_id}` enqueues the rest"
        ) from error
