"""Makes a worker known to the store for as long as it lives."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery import bootsteps

from fanout.errors import BrokerError

if TYPE_CHECKING:
    from celery.worker import WorkController

    from fanout.stores import Store

__all__ = ["Presence"]

_EVERY_S = 5.0
# Two beats may be missed before a worker counts as gone.
_TTL_S = 15.0

_log = logging.getLogger(__name__)


class Presence(bootsteps.StartStopStep):  # type: ignore[misc]
    """Says every few seconds that this worker is there, and how much it can hold.

    The number of shards in flight follows from it (fanout.admission).
    """

    requires = ("celery.worker.components:Timer", "celery.worker.components:Pool")

    def __init__(self, worker: WorkController, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        # ``--concurrency`` is not written back by Celery; the runtime sizes its pools by it.
        worker.app.conf.worker_concurrency = worker.concurrency
        self._store: Store | None = None
        self._timer: Any = None

    def start(self, worker: WorkController) -> None:
        """Begin to say so."""
        self._store = worker.app.fanout_runtime().store
        self._beat(worker)
        self._timer = worker.timer.call_repeatedly(_EVERY_S, self._beat, (worker,))

    def _beat(self, worker: WorkController) -> None:
        try:
            self._store.worker_alive(  # type: ignore[union-attr]
                worker.hostname, concurrency=worker.concurrency, ttl_s=_TTL_S
            )
        except BrokerError as error:
            # The consumer notices as well, and reconnects; the next beat tries again.
            _log.warning("cannot say that this worker is alive: %s", error)

    def stop(self, worker: WorkController) -> None:
        """Say that this worker has stopped."""
        if self._timer is not None:
            self._timer.cancel()
        if self._store is not None:
            try:
                self._store.worker_gone(worker.hostname)
            except BrokerError as error:
                _log.warning("cannot say that this worker has stopped: %s", error)
