"""Runs the batch lane in the fleet: every worker can, and one at a time does."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from celery import bootsteps

from fanout.broker.publisher import Publisher
from fanout.client.embedded.answers import answers_settings
from fanout.system.ticker import Ticker
from workers.batching.batcher import Batcher
from workers.consumer.presence import Presence
from workers.context.app import app_of

if TYPE_CHECKING:
    from celery.worker import WorkController

__all__ = ["BatchingStep"]


# Seconds between two looks of the process that makes batches, if the reaper does not look more often.
_LOOK_S = 1.0
# The most of its time that it spends with them.
_SHARE = 0.1


class BatchingStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Beats like the reaper, and is off where that is; the process that leads looks more often."""

    requires = (Presence,)

    def __init__(self, worker: WorkController, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._app = app_of(worker)
        self._every_s = self._app.settings.reaper_interval_s
        self._batcher: Batcher | None = None
        self._ticker = Ticker("batches", min(self._every_s, _LOOK_S), self._beat)
        self._rests_until = 0.0
        self.enabled = self._every_s > 0

    def start(self, _worker: WorkController) -> None:
        """Start to beat."""
        self._ticker.start()

    def _beat(self) -> None:
        began_at = time.monotonic()
        if began_at < self._rests_until or not self._app.context.version_gate.is_spoken():
            return
        if self._batcher is None:
            connections = self._app.context.connections
            settings = self._app.settings
            # An embedded run has a database of its own, and answers are in another one.
            is_elsewhere = answers_settings(settings).broker_url != settings.broker_url
            self._batcher = Batcher(
                connections.fail_fast_store,
                connections.store,
                # Not the publisher of the branches, which retries for an hour.
                Publisher(self._app),
                settings,
                process=self._app.holder,
                # Another worker takes over from a dead one after three beats.
                ttl_s=3 * self._every_s + 1,
                answers=connections.answers if is_elsewhere else None,
            )
        self._batcher.beat()
        now = time.monotonic()
        rest_s = (now - began_at) / _SHARE if self._batcher.leads else self._every_s
        # By then, some round of the ticker is due.
        self._rests_until = now + min(rest_s, self._every_s) - _LOOK_S / 2

    def stop(self, _worker: WorkController) -> None:
        """Stop; another worker takes over when the leadership lapses."""
        self._ticker.stop()
        if self._batcher is not None:
            self._batcher.close()
