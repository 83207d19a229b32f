"""Registers a worker in the store while it is alive."""

from __future__ import annotations

import logging
import os
import socket
import time
from importlib import metadata
from typing import TYPE_CHECKING, Any

from celery import bootsteps
from celery.concurrency.thread import TaskPool as ThreadPool
from celery.worker import state

from fanout.broker import app as broker
from fanout.broker.dropped import dropped_messages
from fanout.core.errors import BrokerError
from fanout.core.fleet_records import WorkerRecord
from fanout.system.threads import copied
from fanout.system.ticker import Ticker
from workers.consumer.pool import AsyncioPool
from workers.context.app import context_of

if TYPE_CHECKING:
    from celery.worker import WorkController

    from fanout.stores import RedisStore

__all__ = ["Presence"]

# Also the greatest age of the load that is shown for a worker.
_EVERY_S = 2.0
# Several beats may be missed before a worker counts as gone.
_TTL_S = 15.0
# By this beat the record of a predecessor of the same name has expired.
_CHECK_NAME_AT_BEAT = int(_TTL_S / _EVERY_S) + 2
# From then on it is looked at so many times: the record may just have been the own one.
_LOOKS = 20

_log = logging.getLogger(__name__)


class Presence(bootsteps.StartStopStep):  # type: ignore[misc]
    """Records every few seconds that this worker is alive, and its concurrency.

    The number of shards in flight follows from these records (fanout.policy.admission).
    """

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: WorkController, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        # Celery does not write ``--concurrency`` back; the context sizes its pools by it.
        worker.app.conf.worker_concurrency = worker.concurrency
        self._who = (socket.gethostname(), os.getpid(), time.time())
        self._beats = 0
        self._is_name_shared = False
        self._dropped = 0
        self._version = metadata.version("fanout-llm")
        self._ticker = Ticker("presence", _EVERY_S, lambda: self._beat(worker))

    def start(self, _worker: WorkController) -> None:
        """Start the beats; a worker may start while the server is unreachable."""
        self._ticker.start()

    def _beat(self, worker: WorkController) -> None:
        if context_of(worker).version_gate.is_spoken():
            self._beats += 1
            looks = self._beats - _CHECK_NAME_AT_BEAT
            if 0 <= looks < _LOOKS and not self._is_name_shared:
                self._warn_about_shared_name(worker)
            context_of(worker).storage.look()
            _store_of(worker).worker_alive(self._record(worker), ttl_s=_TTL_S)
            self._count_dropped(worker)

    def _count_dropped(self, worker: WorkController) -> None:
        dropped = dropped_messages.counts.total()
        if dropped > self._dropped:
            _store_of(worker).count_dropped(dropped - self._dropped)
            self._dropped = dropped

    def _warn_about_shared_name(self, worker: WorkController) -> None:
        """Warn if another live worker has the same name: each hides the other."""
        records = [w for w in _store_of(worker).workers() if w.name == worker.hostname]
        if any((w.host, w.pid, w.started_at) != self._who for w in records):
            self._is_name_shared = True
            _log.warning(
                "another worker is called %s, too: give each a name of its own (--name), or none",
                worker.hostname,
            )

    def _record(self, worker: WorkController) -> WorkerRecord:
        branches = context_of(worker).branches
        host, pid, started_at = self._who
        pool = worker.pool
        return WorkerRecord(
            name=worker.hostname,
            host=host,
            pid=pid,
            pool=_name_of(worker.pool_cls),
            concurrency=worker.concurrency,
            in_flight=sum(each.name == broker.BRANCH for each in copied(state.active_requests)),
            # In the other pools, a branch that waits keeps its thread or its process.
            waiting=pool.waiting if isinstance(pool, AsyncioPool) else 0,
            processed=branches.ended,
            started_at=started_at,
            sent_at=time.time(),
            version=self._version,
            wire=broker.WIRE_VERSION,
            polled_at=getattr(worker.consumer, "polled_at", 0.0),
            problem=context_of(worker).storage.problem,
            stuck=len(branches.progress.stuck()),
            queues=tuple(sorted(worker.app.amqp.queues.consume_from)),
            day_budgets=context_of(worker).settings.day_budgets,
        )

    def stop(self, worker: WorkController) -> None:
        """Remove the record of this worker."""
        self._ticker.stop()
        try:
            _store_of(worker).worker_gone(worker.hostname)
            context_of(worker).version_gate.release()
        except BrokerError as error:
            _log.warning("cannot say that this worker has stopped: %s", error)


def _store_of(worker: WorkController) -> RedisStore:
    return context_of(worker).connections.fail_fast_store


def _name_of(pool: type) -> str:
    if issubclass(pool, AsyncioPool):
        return "asyncio"
    if issubclass(pool, ThreadPool):
        return "threads"
    # Celery's own pools are identified by their modules.
    return pool.__module__.rpartition(".")[2]
