"""Task events, for Flower and other monitors, are sent many at a time.

A message of its own for each would cost a busy worker a fifth of its throughput
(benchmarks/events_cost.py).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec
from celery import bootsteps
from celery.app.events import Events as CeleryEvents
from celery.events.dispatcher import EventDispatcher
from celery.utils.time import utcoffset

from fanout.system.ticker import Ticker

if TYPE_CHECKING:
    from celery.worker import WorkController

__all__ = ["EventSending", "Events"]

# How long a monitor may be behind.
_EVERY_S = 0.5
# At most so many wait for a tick; the thread that adds the last one sends them all.
_BATCH = 1_000


class Dispatcher(EventDispatcher):  # type: ignore[misc]
    """Makes and encodes batches by itself: Celery's way costs as much as the events do."""

    # Hours; it changes twice a year, and is looked at with each batch.
    _utcoffset = utcoffset()

    def send(self, type: str, **fields: Any) -> None:  # noqa: A002 - Celery's
        """Send an event, that of a task with the next batch. Of tasks, Celery gives no options."""
        is_of_task = type.startswith("task-") and "task" in self.buffer_group
        if not (is_of_task and self.enabled and (not self.groups or "task" in self.groups)):
            super().send(type, **fields)
            return
        fields["type"] = type
        fields["hostname"] = self.hostname
        fields["utcoffset"] = self._utcoffset
        fields["pid"] = self.pid
        fields["clock"] = self.clock.forward()
        fields["timestamp"] = time.time()
        waiting = self._group_buffer["task"]
        waiting.append(fields)
        if len(waiting) >= self.buffer_limit:
            self.flush()
        elif self.on_send_buffered:
            self.on_send_buffered()

    def flush(self, *args: Any, **kwargs: Any) -> None:
        """Send what has gathered."""
        self._utcoffset = utcoffset()
        super().flush(*args, **kwargs)

    def extend_buffer(self, other: Any) -> None:
        """Take over the events of the dispatcher before a reconnect, also those of tasks."""
        super().extend_buffer(other)
        self._group_buffer["task"].extend(other._group_buffer["task"])  # noqa: SLF001 - of this class

    def _publish(self, event: Any, producer: Any, routing_key: str, **options: Any) -> None:
        if not isinstance(event, list) or producer is None:
            super()._publish(event, producer, routing_key, **options)
            return
        try:
            producer.publish(
                msgspec.json.encode(event),
                routing_key=routing_key,
                exchange=self.exchange.name,
                declare=[self.exchange],
                content_type="application/json",
                content_encoding="utf-8",
                headers=self.headers,
                delivery_mode=self.delivery_mode,
            )
        except Exception:
            if not self.buffer_while_offline:
                raise
            # As Celery does: they are sent when there is a connection again.
            self._outbound_buffer.append((event, routing_key))


class Events(CeleryEvents):  # type: ignore[misc]
    """The events of a worker's application."""

    dispatcher_cls = Dispatcher


class EventSending(bootsteps.StartStopStep):  # type: ignore[misc]
    """Sends the events that have gathered; the consumer sends the last ones when it ends."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: WorkController, **kwargs: object) -> None:
        super().__init__(worker, **kwargs)
        self._worker = worker
        self._ticker = Ticker("events", _EVERY_S, self._send)

    def start(self, worker: WorkController) -> None:
        """Begin to send."""
        worker.app.context.on_close(self._ticker.stop)
        self._ticker.start()

    def _send(self) -> None:
        # Another one after each reconnect.
        dispatcher = getattr(self._worker.consumer, "event_dispatcher", None)
        if dispatcher is not None and dispatcher.enabled:
            dispatcher.buffer_limit = _BATCH
            dispatcher.flush()
