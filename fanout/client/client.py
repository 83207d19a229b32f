"""``Client``: submits runs and finds them again."""

from __future__ import annotations

import time
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from fanout.client.arguments import checked_count, checked_spec, require_open_files
from fanout.client.connected import ConnectedClient
from fanout.client.passages import Passages
from fanout.client.past_runs import run_opener, with_full_ids
from fanout.core.errors import AmbiguousRunError, UnknownRunError
from fanout.core.ids import StageId
from fanout.core.lanes import takes_lane
from fanout.core.plan_runs import PLAN, is_plan, job_run
from fanout.inputs.documents import log_notice
from fanout.inputs.intake import checked_documents
from fanout.llm.enforcement import unenforced
from fanout.llm.prices import unpriced
from fanout.runs.enqueue import close_input
from fanout.runs.token_counts import require_reduce_room, with_tokenizer

# Broker modules are imported on use, so that an embedded fleet starts meanwhile.
if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Mapping

    from fanout.broker.app import Preflight
    from fanout.client.connections import Connections
    from fanout.client.run import Run
    from fanout.client.trials import Trial
    from fanout.core.records import Document, RunStatus
    from fanout.core.spec import RunSpec
    from fanout.core.state import RunRecord
    from fanout.inputs.documents import Chunks, Notify
    from fanout.observe.fleet import FleetStatus
    from fanout.runs.estimate_result import Estimate

__all__ = ["Client"]

_LATEST = "latest"


class Client(ConnectedClient):
    """Submits runs to a fleet and follows them. Threads may share it.

    Args:
        broker_url: The Redis server of the fleet; None is ``FANOUT_BROKER_URL``. Without either, the
            client embeds a fleet of one worker, which ends with it. The runs stay in
            ``FANOUT_STATE_DIR``, and any embedded client of the user can resume them.
        concurrency: Branches in flight of the embedded worker; not allowed with a broker.

    Raises:
        SettingsError: A ``FANOUT_*`` variable is wrong.
        SpecError: ``concurrency`` is wrong or has no effect.
        BrokerError: The broker does not answer.
    """

    def submit(
        self,
        spec: RunSpec | Mapping[str, Any],
        documents: Chunks | None = None,
        *,
        on_bad_document: Callable[[str, str], None] | None = None,
        on_notice: Notify = log_notice,
        on_created: Callable[[str], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Run:
        """Split the input, publish it, and return the run.

        Workers process the first branches while the rest of the input is read.

        Args:
            spec: The job.
            documents: The input if it is not in files, as ``ParallelCalls.run`` takes it; read lazily.
            on_bad_document: Called with name and reason of each document that cannot be used.
            on_notice: Called with notices, such as files that are left out, or what a provider does
                not enforce of a schema (once for each client); by default, the logger
                ``fanout.inputs.documents`` gets them.
            on_created: Called with the run's id as soon as the run exists.
            should_stop: Called before each shard; True ends the reading and cancels the run. Before
                there is a run, it raises RunError.

        Raises:
            SpecError: A field is wrong, or a prompt has an unknown name.
            InputError: There is no usable document at all.
            ModelError: A model of the job cannot be used; nothing is enqueued.
            SettingsError: ``FANOUT_STORAGE`` cannot be written to, or is not the fleet's; or the
                embedded worker does not start with these settings.
            WireVersionError: The fleet has another version of fanout.
            BrokerError: The broker cannot be reached.
        """
        spec = with_full_ids(self, checked_spec(spec, has_documents=documents is not None))
        if spec.read_on == "workers":
            reading, spec = self._read_by_workers(spec, documents, on_notice, should_stop)
            if should_stop is not None and should_stop():
                return reading
        source = checked_documents(spec, documents, notify=on_notice, open_run=run_opener(self))
        return self.begin(
            spec,
            source,
            on_bad_document=on_bad_document,
            on_notice=on_notice,
            on_created=on_created,
            should_stop=should_stop,
        )

    def begin(
        self,
        spec: RunSpec,
        source: Iterator[Document],
        *,
        on_bad_document: Callable[[str, str], None] | None = None,
        on_notice: Notify = log_notice,
        on_created: Callable[[str], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Run:
        """Begin a run of a checked job with the documents that were read; see ``submit``."""
        self._tell(unenforced(spec), on_notice)
        self._check_storage()
        if self.is_embedded and self._fleet is None:
            require_open_files(self._concurrency, self._given_concurrency, spec.max_workers)
        connections = self._connected(spec.all_called)
        self._require_ready(connections, spec, on_notice, should_stop)
        self._tell(unpriced(spec), on_notice)
        spec, source = with_tokenizer(spec, source, connections.store)
        if spec.reduces_by_calls:
            require_reduce_room(spec, connections.store)
        read = source
        passages = Passages(
            self._settings.cache_dir,
            notify=on_notice,
            open_run=run_opener(self),
            should_stop=should_stop,
        )
        run_id = self._create_run(connections, spec, passages)
        if on_created is not None:
            on_created(run_id)
        source = self._split(connections, run_id, spec, lambda: read, on_notice, should_stop)
        with connections.enqueuer(run_id, on_bad_document, should_stop) as enqueuer:
            enqueuer.enqueue(run_id, spec, source)
        return self.run(run_id).typed(spec.types)

    def estimate(
        self,
        spec: RunSpec | Mapping[str, Any],
        documents: Chunks | None = None,
        *,
        on_notice: Notify = log_notice,
    ) -> Estimate:
        """Return what a job would use and cost, without a call: its input is read as a stream.

        Raises:
            SpecError, InputError, ModelError, BrokerError: As ``submit``.
        """
        from fanout.client.estimates import estimate_job

        return estimate_job(self, spec, documents, notify=on_notice)

    def trial(
        self,
        spec: RunSpec | Mapping[str, Any],
        documents: Chunks | None = None,
        *,
        size: int = 20,
        on_notice: Notify = log_notice,
    ) -> Trial:
        """Run a random sample of a job's chunks, and project the rest.

        The same seed of the job chooses the same sample. Its calls are those that the job makes, so
        the response cache has their answers when the job runs. There is no aggregate.

        Args:
            spec: The job.
            documents: Its input, if it is not in files.
            size: How many chunks to run.
            on_notice: As for ``submit``.

        Raises:
            SpecError, InputError, ModelError, BrokerError: As ``submit``.
        """
        from fanout.client.trials import begin_trial, trial_of

        # None is no size, as 0 is none.
        count = checked_count("size", size or 0)
        begun = begin_trial(self, spec, documents, size=count or 0, notify=on_notice)
        begun.run.wait()
        return trial_of(begun)

    def _read_by_workers(
        self,
        spec: RunSpec,
        documents: object,
        notify: Notify,
        should_stop: Callable[[], bool] | None,
    ) -> tuple[Run, RunSpec]:
        """Have the workers read the documents of a job that could be run.

        Returns:
            The run of that, and the job whose input is what they have read.
        """
        from fanout.client import worker_reading

        began_at = time.monotonic()
        files = worker_reading.require_readable(
            spec, has_documents=documents is not None, notify=notify
        )
        if self.is_embedded and self._fleet is None:
            require_open_files(self._concurrency, self._given_concurrency, spec.max_workers)
        # It has the functions of the job's own model, too.
        connections = self._connected(spec.all_called)
        self._require_ready(connections, spec, notify, should_stop)
        return worker_reading.read_first(
            self, spec, files, began_at=began_at, notify=notify, should_stop=should_stop
        )

    def resume(
        self,
        run_id: str,
        documents: Chunks | None = None,
        *,
        on_bad_document: Callable[[str, str], None] | None = None,
        on_notice: Notify = log_notice,
        should_stop: Callable[[], bool] | None = None,
    ) -> Run:
        """Enqueue the rest of a run whose client died while it enqueued, and return the run.

        The input is compared with what was enqueued. It does no harm while the first client lives, or
        if two processes do it.

        Args:
            run_id: The run.
            documents: The same input again, if it is not in the files of the run.
            on_bad_document: As for ``submit``.
            on_notice: As for ``submit``.
            should_stop: As for ``submit``.

        Raises:
            UnknownRunError: There is no such run.
            RunError: The input differs from the enqueued input.
            InputError: The input cannot be read.
            WireVersionError: The fleet has another version of fanout.
            BrokerError: The broker cannot be reached.
        """
        # The run in which a model splits documents is part of the job's.
        run_id = job_run(run_id)
        run = self.run(run_id)
        connections = self._connections_of(run_id)
        connections.claim()
        record = connections.store.run(run_id)
        if not record.has_ended and self.is_embedded and connections is not self._connections:
            # A worker processes the first shards while the rest is read.
            self._embedded().work_on(run_id)
        if record.has_ended or connections.store.stage(StageId(run_id, 0)).sealed:
            if documents is not None:
                # It is not read again, but a user who passes another input should know.
                self._require_same(connections, record, run.spec, documents)
            return run
        if record.halt is not None:
            close_input(connections.store, connections.publisher, run_id)
            return run
        self._check_storage()
        connections.require_storage()
        spec, open_run = run.spec, run_opener(self)
        read = partial(checked_documents, spec, documents, notify=on_notice, open_run=open_run)
        source = self._split(connections, run_id, spec, read, on_notice, should_stop)
        with connections.enqueuer(run_id, on_bad_document, should_stop) as enqueuer:
            enqueuer.resume(run_id, spec, source)
        return run

    def _split(
        self,
        connections: Connections,
        run_id: str,
        spec: RunSpec,
        read: Callable[[], Iterator[Document]],
        notify: Notify,
        should_stop: Callable[[], bool] | None,
    ) -> Iterator[Document]:
        """Return the documents of a job; the parts of these, where a model splits them."""
        if spec.split != "model":
            return read()
        from fanout.client.model_splitting import split_by_model

        return split_by_model(
            self, connections, run_id, spec, read, notify=notify, should_stop=should_stop
        )

    def heal(self) -> int:
        """Find lost steps and do them again now; otherwise the workers do so after a while.

        Returns:
            The number of steps.

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

    def run(self, run_id: str) -> Run:
        """Return a run by its id. Raises UnknownRunError."""
        connections = self._connections_of(run_id)
        if connections is self._connections:
            return connections.run(run_id, self._check_fleet)
        return self._embedded().run(run_id)

    def find(self, prefix: str) -> Run:
        """Return the only run whose id begins with ``prefix``; ``latest`` is the newest run.

        Raises:
            UnknownRunError: There is no such run.
            AmbiguousRunError: There are several.
        """
        if prefix != _LATEST:
            with suppress(UnknownRunError):
                return self.run(prefix)
        records = self._records("" if prefix == _LATEST else prefix)
        # The runs in which a model splits documents have ids of their own kind.
        own = (one for one in records if prefix.startswith(PLAN) or not is_plan(one.run_id))
        found = list(islice(own, 1) if prefix == _LATEST else own)
        # An empty prefix may be an unset variable of a script.
        if not prefix or not found:
            raise self._embedded().unknown(prefix) if self.is_embedded else UnknownRunError(prefix)
        if len(found) > 1:
            raise AmbiguousRunError(prefix, {run.run_id: run.status.value for run in found})
        return self.run(found[0].run_id)

    def _records(self, prefix: str = "") -> Iterator[RunRecord]:
        """Yield the runs whose ids begin with ``prefix``, the newest first."""
        if self.is_embedded:
            return self._embedded().records(prefix)
        return self._connected().store.runs(prefix)

    def runs(self, statuses: Container[RunStatus] | None = None) -> Iterator[Run]:
        """Yield the runs that have not expired, the newest first.

        Args:
            statuses: The statuses to include; None is all.
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
        """Return the status of the whole fleet.

        Args:
            run_id: A run of the fleet, as each embedded run may have its own; None is this client's.

        Raises:
            UnknownRunError: There is no such run.
            BrokerError: The broker cannot be reached.
        """
        from fanout.observe.fleet import fleet_status

        connections = self._connected() if run_id is None else self._connections_of(run_id)
        return fleet_status(connections.store, connections.redis)

    def check_model(self, model: str, *, timeout_s: float) -> Preflight | None:
        """Ask a worker whether a model can be used; return None if none answers in time.

        Raises:
            WireVersionError: The fleet has another version of fanout.
            BrokerError: The broker cannot be reached.
        """
        connections = self._connected((model,))
        connections.claim()
        return connections.ask(
            model,
            timeout_s=timeout_s,
            check=self._check_fleet,
            batches=takes_lane(model, "batch"),
        )
