"""The connections of a client: the store and the queues of one broker.

In a module of its own, as it loads Celery: an embedded fleet starts meanwhile (fanout.client.client).
"""

from __future__ import annotations

import logging
import secrets
import time
from typing import TYPE_CHECKING

import msgspec

from fanout.broker.app import Preflight, connect_broker, make_app, make_store
from fanout.broker.fleet_version import check_as_client, own_version
from fanout.broker.inspection import MessageReader
from fanout.broker.publisher import Publisher
from fanout.client.run import AWAY_S, Run, polls
from fanout.core.errors import ModelError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fanout.core.settings import Settings
    from fanout.stores import RedisStore, WorkerRecord

__all__ = ["Connections"]

_PREFLIGHT_S = 600.0
# A worker that has a slot, or whose pool needs none for it, answers sooner.
_BUSY_S = 8.0

_log = logging.getLogger(__name__)


class Connections:
    """A client's open connections; close after use. Raises BrokerError without an answer."""

    def __init__(self, settings: Settings) -> None:
        self.store: RedisStore = make_store(settings)
        self.store.ping()
        # A restart of the server must not fail a run that is being enqueued.
        self.patient: RedisStore = make_store(settings, is_patient=True, away_s=AWAY_S)
        self._app = make_app(settings)
        self.publisher = Publisher(self._app)
        self.redis = connect_broker(settings)
        self.messages = MessageReader(self.redis)

    @property
    def version(self) -> int:
        """The version of the wire format that runs are written in."""
        return own_version()

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
        """Return the handle of a run; ``check`` is called while a caller waits for it."""
        return Run(run_id, self.store, self.publisher, check)

    def preflight(self, model: str, *, check: Callable[[], None], wait: bool) -> None:
        """Have a worker say whether the model can be used, as it is there that it is called.

        Without a live worker there is no check; the run then waits for one, unless ``wait``
        says that one is about to come. Nor is there where all are busy with calls that may be long,
        and their pool, as prefork, has nothing else to answer with.
        """
        if not wait and not self.store.workers():
            return
        asked_at = time.monotonic()

        def is_nobody_free() -> bool:
            workers = self.store.workers()
            if not workers:
                return not wait
            is_late = time.monotonic() - asked_at > _BUSY_S
            return is_late and all(_is_full(worker) for worker in workers)

        def is_over() -> bool:
            check()
            return is_nobody_free()

        verdict = self.ask(model, timeout_s=_PREFLIGHT_S, is_over=is_over)
        if verdict is None:
            if is_nobody_free():
                _log.warning("all workers are busy: model %s is not checked beforehand", model)
                return
            raise ModelError(f"no worker answered within {_PREFLIGHT_S:.0f} s about model {model}")
        if verdict.message is not None:
            raise ModelError(verdict.message, kind=verdict.kind)

    def ask(self, model: str, *, timeout_s: float, is_over: Callable[[], bool]) -> Preflight | None:
        """Return what a worker says of a model; None where the time, or the waiting, is over."""
        note = f"preflight-{secrets.token_hex(8)}"
        self.publisher.preflight(model, note)
        for _ in polls(time.monotonic() + timeout_s):
            answer = self.store.take_note(note)
            if answer is not None:
                return msgspec.json.decode(answer, type=Preflight)
            if is_over():
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
    """Say whether a worker has no slot, and needs one to answer."""
    return worker.pool in {"prefork", "solo"} and worker.in_flight >= worker.concurrency
