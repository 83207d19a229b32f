"""The reaper's place in the fleet: every worker carries one, and one of them holds the lock."""

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
    """Sweeps every few seconds, where no other worker does."""

    # So that it stops first: a beat says that the worker is there.
    requires = (Presence,)

    def __init__(self, worker: WorkController, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._app = app_of(worker)
        # Not by its name: two workers may have been given the same.
        self._name = self._app.holder
        self._settings = app_of(worker).settings
        self._reaper: Reaper | None = None
        self._ticker = Ticker("reaper", self._settings.reaper_interval_s, self._beat)
        self.enabled = self._settings.reaper_interval_s > 0

    def start(self, _worker: WorkController) -> None:
        """Begin to sweep."""
        self._ticker.start()

    def _beat(self) -> None:
        if not self._app.context.checks.version_gate.is_spoken():
            return
        store = self._app.context.connections.fail_fast_store
        # A holder that has died is followed after three sweeps.
        ttl_s = int(3 * self._settings.reaper_interval_s) + 1
        if not store.take_lock(_LOCK, self._name, ttl_s=ttl_s):
            self._reaper = None
            return
        if self._reaper is None:
            self._reaper = Reaper(
                store,
                # Not that of the branches, which waits for an hour.
                Publisher(self._app),
                self._app.context.connections.messages,
                stall_s=self._settings.stall_s,
                on_end=self._app.context.reports.run_ended,
            )
        self._reaper.sweep()

    def stop(self, _worker: WorkController) -> None:
        """Stop sweeping; the lock runs out."""
        self._ticker.stop()
