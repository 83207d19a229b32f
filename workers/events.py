"""Task events, for Flower and other monitors, are sent many at a time.

A message of its own for each would cost a busy worker a fifth of its throughput
(benchmarks/events_cost.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery import bootsteps

from workers.ticker import Ticker

if TYPE_CHECKING:
    from celery.worker import WorkController

__all__ = ["SendsEvents"]

# How long a monitor may be behind.
_EVERY_S = 0.5
# Between two ticks; with that many, whoever has the last one sends them all.
_BATCH = 1_000


class SendsEvents(bootsteps.StartStopStep):  # type: ignore[misc]
    """Sends the events that have gathered; the consumer sends the last ones when it ends."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: WorkController, **kwargs: object) -> None:
        super().__init__(worker, **kwargs)
        self._worker = worker
        self._ticker = Ticker("events", _EVERY_S, self._send)

    def start(self, worker: WorkController) -> None:
        """Begin to send."""
        worker.app.fanout_runtime().on_close(self._ticker.stop)
        self._ticker.start()

    def _send(self) -> None:
        # Another one after each reconnect.
        dispatcher = getattr(self._worker.consumer, "event_dispatcher", None)
        if dispatcher is not None and dispatcher.enabled:
            dispatcher.buffer_limit = _BATCH
            dispatcher.flush()
