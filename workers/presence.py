"""Makes a worker known to the store for as long as it lives."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery import bootsteps

from fanout.errors import BrokerError
from workers.ticker import Ticker

if TYPE_CHECKING:
    from celery.worker import WorkController

__all__ = ["Presence"]

_EVERY_S = 5.0
# Two beats may be missed before a worker counts as gone.
_TTL_S = 15.0

_log = logging.getLogger(__name__)


class Presence(bootsteps.StartStopStep):  # type: ignore[misc]
    """Says every few seconds that this worker is there, and how much it can hold.

    The number of shards in flight follows from it (fanout.admission).
    """

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: WorkController, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        # ``--concurrency`` is not written back by Celery; the runtime sizes its pools by it.
        worker.app.conf.worker_concurrency = worker.concurrency
        self._ticker = Ticker("presence", _EVERY_S, lambda: self._beat(worker))

    def start(self, _worker: WorkController) -> None:
        """Begin to say so; a worker may be started while the server is away."""
        self._ticker.start()

    def _beat(self, worker: WorkController) -> None:
        worker.app.fanout_runtime().watched.worker_alive(
            worker.hostname, concurrency=worker.concurrency, ttl_s=_TTL_S
        )

    def stop(self, worker: WorkController) -> None:
        """Say that this worker has stopped."""
        self._ticker.stop()
        try:
            worker.app.fanout_runtime().watched.worker_gone(worker.hostname)
        except BrokerError as error:
            _log.warning("cannot say that this worker has stopped: %s", error)
