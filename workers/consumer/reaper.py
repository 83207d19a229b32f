"""Runs the reaper in the fleet: every worker has one, and the holder of a lock runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import bootsteps

from fanout.broker.publisher import Publisher
from fanout.runs.reaper import Reaper
from fanout.system.ticker import Ticker
from workers.consumer.presence import Presence
from workers.context.app import app_of

if TYPE_CHECKING:
    from celery.worker import WorkController

__all__ = ["ReaperStep"]

_LOCK = "reaper"


class ReaperStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Sweeps every few seconds unless another worker does."""

    # Stops before Presence, whose beats show that the worker is alive.
    requires = (Presence,)

    def __init__(self, worker: WorkController, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._app = app_of(worker)
        # Not the worker's name: two workers may have the same name.
        self._name = self._app.holder
        self._settings = app_of(worker).settings
        self._reaper: Reaper | None = None
        self._ticker = Ticker("reaper", self._settings.reaper_interval_s, self._beat)
        self.enabled = self._settings.reaper_interval_s > 0

    def start(self, _worker: WorkController) -> None:
        """Start to sweep."""
        self._ticker.start()

    def _beat(self) -> None:
        if not self._app.context.version_gate.is_spoken():
            return
        store = self._app.context.connections.fail_fast_store
        # Another worker takes over from a dead holder after three sweeps.
        ttl_s = int(3 * self._settings.reaper_interval_s) + 1
        if not store.take_lock(_LOCK, self._name, ttl_s=ttl_s):
            self._reaper = None
            return
        if self._reaper is None:
            self._reaper = Reaper(
                store,
                # Not the publisher of the branches, which retries for an hour.
                Publisher(self._app),
                self._app.context.connections.messages,
                stall_s=self._settings.stall_s,
                on_end=self._app.context.reports.run_ended,
            )
        self._reaper.sweep()

    def stop(self, _worker: WorkController) -> None:
        """Stop sweeping; the lock expires."""
        self._ticker.stop()
