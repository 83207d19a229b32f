"""``split: model``: a run in which a model splits the documents, before those of the job that follows it.

The record of the job's run is there first, and the other run has an id that follows from its id. So a
client that is killed leaves a run that ``resume`` goes on with, wherever it was.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from fanout.client.worker_reading import wait_until_ended
from fanout.core.errors import BrokerError, FanoutError, UnknownRunError
from fanout.core.ids import StageId
from fanout.core.plan_runs import plan_run
from fanout.core.records import RunStatus
from fanout.core.spec import stored_spec
from fanout.core.units import plural
from fanout.inputs.documents import Notice
from fanout.policy.retries import STOPS_RUN
from fanout.runs.enqueue import close_input
from fanout.runs.planned import PlannedDocuments, pieces, plan_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fanout.client.client import Client
    from fanout.client.connections import Connections
    from fanout.client.run import Run
    from fanout.core.records import Document
    from fanout.core.spec import RunSpec
    from fanout.inputs.documents import Notify

__all__ = ["require_same_pieces", "split_by_model"]


def split_by_model(
    client: Client,
    connections: Connections,
    run_id: str,
    spec: RunSpec,
    read: Callable[[], Iterator[Document]],
    *,
    notify: Notify,
    should_stop: Callable[[], bool] | None,
) -> Iterator[Document]:
    """Return the documents of a run with their parts, once a model has split all of them.

    See ``_ModelSplit.documents``.
    """
    split = _ModelSplit(
        connections,
        run_id,
        spec,
        find=client.run,
        notify=notify,
        should_stop=should_stop,
        says_idle=not client.is_embedded,
    )
    return split.documents(read)


def require_same_pieces(
    connections: Connections, run_id: str, spec: RunSpec, documents: Iterator[Document]
) -> None:
    """Make sure that an input is the one that a model has split for a run. Raises RunError."""
    plan = connections.store.run(plan_run(run_id))
    stored = stored_spec(connections.store.spec(plan.run_id))
    connections.require_same(plan, stored, pieces(spec, documents))


class _ModelSplit:
    """The splitting of the documents of a run by a model.

    Args:
        connections: The connections to the server of the run.
        run_id: The run, whose record is there.
        spec: Its job.
        find: Returns the handle of a run.
        notify: Receives notices.
        should_stop: True stops it.
        says_idle: Whether to say that nobody works.
    """

    def __init__(
        self,
        connections: Connections,
        run_id: str,
        spec: RunSpec,
        *,
        find: Callable[[str], Run],
        notify: Notify,
        should_stop: Callable[[], bool] | None,
        says_idle: bool,
    ) -> None:
        self._connections = connections
        self._store = connections.patient
        self._run_id = run_id
        self._plan_id = plan_run(run_id)
        self._spec = spec
        self._find = find
        self._notify = notify
        self._should_stop = should_stop
        self._says_idle = says_idle

    def documents(self, read: Callable[[], Iterator[Document]]) -> Iterator[Document]:
        """Return the documents with their parts, once the model has split all of them.

        None, if the run was stopped meanwhile, or its documents cannot be split at all: it is then
        halted.

        Args:
            read: Returns the documents of the job; it is called only where they are not stored yet.

        Raises:
            InputError: The documents cannot be read.
            BrokerError: The server is unreachable; ``resume`` goes on.
        """
        try:
            self._enqueue(read)
        except BrokerError:
            raise
        except FanoutError as error:
            self._fail(str(error))
            raise
        plan = self._find(self._plan_id)
        # It may have ended before.
        if not self._store.run(self._plan_id).has_ended:
            texts = plural(plan.status().total, "text", "texts")
            self._notify(Notice(text=f"a model splits {texts} (run {self._plan_id})"))
            wait_until_ended(
                plan, self._should_stop, self._notify, what="texts", says_idle=self._says_idle
            )
        if self._is_stopped(plan):
            return iter(())
        return self._read()

    def _read(self) -> Iterator[Document]:
        found = PlannedDocuments(self._store, self._plan_id, self._spec)
        yield from found
        for notice in found.notices():
            self._notify(notice)

    def _enqueue(self, read: Callable[[], Iterator[Document]]) -> None:
        """Enqueue what the model is to split, or the rest of it."""
        connections = self._connections
        try:
            record = self._store.run(self._plan_id)
        except UnknownRunError:
            now = self._store.now()
            spec = plan_spec(self._spec, deadline_s=self._left_s(now))
            connections.create_run(self._plan_id, spec, created_at=now)
            run = self._store.run(self._run_id)
            if run.halt is not None:
                # The client that stopped it may have found no splitting to stop.
                self._store.halt(self._plan_id, run.halt)
                close_input(self._store, connections.publisher, self._plan_id)
                return
            if run.status is RunStatus.PAUSED:
                self._store.pause(self._plan_id)
            with connections.enqueuer(self._run_id, None, self._should_stop) as enqueuer:
                enqueuer.enqueue(self._plan_id, spec, pieces(self._spec, read()))
            return
        if record.has_ended or self._store.stage(StageId(self._plan_id, 0)).sealed:
            return
        if record.halt is not None:
            close_input(self._store, connections.publisher, self._plan_id)
            return
        spec = stored_spec(self._store.spec(self._plan_id))
        with connections.enqueuer(self._run_id, None, self._should_stop) as enqueuer:
            enqueuer.resume(self._plan_id, spec, pieces(self._spec, read()))

    def _left_s(self, now: float) -> float | None:
        deadline_at = self._store.run(self._run_id).deadline_at
        return None if deadline_at is None else max(1.0, deadline_at - now)

    def _is_stopped(self, plan: Run) -> bool:
        """Return whether the run was stopped, or must be, as its documents were not split."""
        if self._store.run(self._run_id).halt is not None:
            return True
        record = self._store.run(self._plan_id)
        is_wanted = self._should_stop is None or not self._should_stop()
        if record.halt is RunStatus.CANCELLED or not is_wanted:
            self._store.halt(self._run_id, RunStatus.CANCELLED)
            return True
        status = plan.status()
        # What every call fails for, those of the job would fail for, too.
        is_common = status.failed == status.total and STOPS_RUN.issuperset(status.errors)
        if record.halt is RunStatus.FAILED or (is_common and status.total):
            self._halt(f"the model did not split the documents: {plan.problem(status)}")
            return True
        return False

    def _halt(self, error: str) -> None:
        self._store.halt(self._run_id, RunStatus.FAILED, error=error)

    def _fail(self, error: str) -> None:
        """End the run whose documents cannot be read; without any it leaves no run."""
        try:
            self._store.run(self._plan_id)
        except UnknownRunError:
            with suppress(UnknownRunError):
                self._store.delete_run(self._run_id)
            return
        self._halt(error)
        close_input(self._store, self._connections.publisher, self._run_id)
