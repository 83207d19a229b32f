"""The connections of a client: the store and the queues of one broker.

The client imports this module, which loads Celery, while an embedded fleet starts.
"""

from __future__ import annotations

import logging
import secrets
import time
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

from fanout.broker.app import Preflight, connect_broker, make_app, make_store
from fanout.broker.fleet_version import check_as_client, own_version
from fanout.broker.inspection import MessageReader
from fanout.broker.publisher import Publisher
from fanout.client.polls import polls
from fanout.client.run import AWAY_S, Run
from fanout.core.errors import BrokerError, ModelError, RunError, SettingsError
from fanout.core.lanes import first_lane
from fanout.core.plan_runs import is_plan
from fanout.runs.budgets import run_limits
from fanout.runs.enqueue import Enqueuer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from fanout.core.fleet_records import WorkerRecord
    from fanout.core.records import Document
    from fanout.core.settings import Settings
    from fanout.core.spec import RunSpec
    from fanout.core.state import RunRecord
    from fanout.stores import RedisStore

__all__ = ["Connections"]

_PREFLIGHT_S = 600.0
# A worker with a free place, or whose pool needs none to answer, answers sooner.
_BUSY_S = 8.0

_log = logging.getLogger(__name__)


class Connections:
    """A client's open connections; close after use. Raises BrokerError if the broker is silent."""

    def __init__(self, settings: Settings) -> None:
        self.store: RedisStore = make_store(settings)
        self.store.ping()
        # A restart of the server must not fail a run that is being enqueued.
        self.patient: RedisStore = make_store(settings, is_patient=True, away_s=AWAY_S)
        self._app = make_app(settings)
        self.publisher = Publisher(self._app)
        self.redis = connect_broker(settings)
        self.messages = MessageReader(self.redis)

    def claim(self, *, needs_room: bool = True) -> None:
        """Make sure that this client may change what the fleet does.

        Raises:
            WireVersionError: The fleet has another version of fanout.
            BrokerError: The server is full, and what comes next needs room.
        """
        check_as_client(self.store, needs_room=needs_room)

    def require_storage(self) -> None:
        """Make sure that ``FANOUT_STORAGE`` is what the fleet uses. Raises SettingsError."""
        problem = self.store.storage_problem()
        if problem is not None:
            raise SettingsError(f"FANOUT_STORAGE: {problem}")

    def run(self, run_id: str, check: Callable[[], None]) -> Run:
        """Return the handle of a run, whose ``wait`` calls ``check`` at each poll."""
        return Run(run_id, self.store, self.publisher, check)

    def create_run(
        self,
        run_id: str,
        spec: RunSpec,
        *,
        created_at: float,
        passages: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Create the record of a run that uses indexes of passages."""
        self.store.create_run(
            run_id,
            spec=spec.model_dump_json(),
            created_at=created_at,
            deadline_at=None if spec.deadline_s is None else created_at + spec.deadline_s,
            wire=own_version(),
            max_workers=spec.max_workers,
            priority=spec.priority,
            is_gathered=first_lane(spec.lane) == "batch",
            # What splits the documents of a run uses its budget.
            budget=None if is_plan(run_id) else run_limits(spec),
            passages=passages,
        )

    @contextmanager
    def enqueuer(
        self,
        run_id: str,
        on_bad_document: Callable[[str, str], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> Iterator[Enqueuer]:
        """Give what enqueues a run; a BrokerError names the command that enqueues the rest."""
        try:
            yield Enqueuer(self.patient, self.publisher, on_bad_document, should_stop)
        except BrokerError as error:
            raise BrokerError(
                f"{error}; run {run_id} is enqueued in part: `fanout resume {run_id}` enqueues the "
                "rest"
            ) from error

    def require_same(self, record: RunRecord, spec: RunSpec, documents: Iterator[Document]) -> None:
        """Make sure that an input is the one that was enqueued. Raises RunError."""
        try:
            Enqueuer(self.store, self.publisher).compare(record, spec, documents)
        except RunError as error:
            where = f"has ended ({record.status.value})" if record.has_ended else "goes on"
            raise RunError(
                f"run {record.run_id} {where}, and takes no further input: {error}; "
                "`fanout run` or `fanout submit` begins another run"
            ) from error

    def preflight(
        self, model: str, *, check: Callable[[], None], wait: bool, batches: bool = False
    ) -> None:
        """Ask a worker whether it can use the model, and with ``batches`` make batches of it.

        Raises ModelError if it cannot.

        Without a live worker there is no check, unless ``wait`` says that one is starting. If all
        workers are busy with long calls, and their pool cannot answer meanwhile, there is none either.
        """
        if not wait and not self.store.workers():
            return
        asked_at = time.monotonic()

        def is_no_worker_free() -> bool:
            workers = self.store.workers()
            if not workers:
                return not wait
            is_late = time.monotonic() - asked_at > _BUSY_S
            return is_late and all(_is_full(worker) for worker in workers)

        verdict = self.ask(
            model,
            timeout_s=_PREFLIGHT_S,
            check=check,
            is_in_vain=is_no_worker_free,
            batches=batches,
        )
        if verdict is None:
            if is_no_worker_free():
                _log.warning("all workers are busy: model %s is not checked beforehand", model)
                return
            raise ModelError(f"no worker answered within {_PREFLIGHT_S:.0f} s about model {model}")
        if verdict.message is not None:
            named = "" if model in verdict.message else f"{model}: "
            raise ModelError(f"{named}{verdict.message}", kind=verdict.kind)
        if verdict.batches:
            raise ModelError(f"{model}: {verdict.batches}")

    def ask(
        self,
        model: str,
        *,
        timeout_s: float,
        check: Callable[[], None],
        is_in_vain: Callable[[], bool] = lambda: False,
        batches: bool = False,
    ) -> Preflight | None:
        """Return a worker's answer about a model; None if none comes in time, or the wait is in vain.

        ``check`` and ``is_in_vain`` are called at each poll.
        """
        note = f"preflight-{secrets.token_hex(8)}"
        self.publisher.preflight(model, note, batches=batches)
        for _ in polls(time.monotonic() + timeout_s):
            answer = self.store.take_note(note)
            if answer is not None:
                return msgspec.json.decode(answer, type=Preflight)
            check()
            if is_in_vain():
                return None
        return None

    def close(self) -> None:
        """Close all connections."""
        self.publisher.close()
        self._app.close()
        self.redis.close()
        self.patient.close()
        self.store.close()


def _is_full(worker: WorkerRecord) -> bool:
    """Return whether a worker needs a place to answer, and has none."""
    return worker.pool in {"prefork", "solo"} and worker.in_flight >= worker.concurrency
