"""Sends the task events for Flower and other monitors in batches.

One message per event would cost a busy worker a fifth of its throughput (benchmarks/events_cost.py).
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import msgspec
from celery import bootsteps
from celery.app.events import Events as CeleryEvents
from celery.events.dispatcher import EventDispatcher
from celery.utils.time import utcoffset

from fanout.broker.dropped import MALFORMED
from fanout.system.ticker import Ticker

if TYPE_CHECKING:
    from celery.worker import WorkController

__all__ = ["EventSending", "Events"]

# The greatest delay of an event.
_EVERY_S = 0.5
# The most events that wait for the next tick; the thread that adds the last one sends them all.
_BATCH = 1_000
_HEARTBEAT = "worker.heartbeat"

_log = logging.getLogger(__name__)


class Dispatcher(EventDispatcher):  # type: ignore[misc]
    """Builds and encodes batches itself: Celery's own code costs as much as sending the events."""

    # Whether it takes events of tasks, and those wait for a batch.
    _batches_tasks = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        is_of_group = not self.groups or "task" in self.groups
        self._batches_tasks = is_of_group and "task" in self.buffer_group
        self._say_who()

    def _say_who(self) -> None:
        """Note what all events of a batch have in common; the offset, in hours, may change."""
        offset = utcoffset()
        self._sender = {"hostname": self.hostname, "utcoffset": offset, "pid": self.pid}

    def send(self, type: str, **fields: Any) -> None:  # noqa: A002 - Celery's
        """Send an event; task events, for which Celery passes no options, with the next batch."""
        if not (self._batches_tasks and self.enabled and type.startswith("task-")):
            super().send(type, **fields)
            return
        waiting = self._group_buffer["task"]
        clock = self.clock.forward()
        waiting.append(
            {"type": type, **fields, **self._sender, "clock": clock, "timestamp": time.time()}
        )
        if len(waiting) >= self.buffer_limit:
            self.flush()
        elif self.on_send_buffered:
            self.on_send_buffered()

    def flush(self, *args: Any, **kwargs: Any) -> None:
        """Send the waiting events."""
        self._say_who()
        super().flush(*args, **kwargs)

    def extend_buffer(self, other: Any) -> None:
        """Take over the waiting events of the dispatcher of a lost connection."""
        super().extend_buffer(other)
        self._group_buffer["task"].extend(other._group_buffer["task"])  # noqa: SLF001 - of this class

    def _publish(self, event: Any, producer: Any, routing_key: str, **options: Any) -> None:
        body = _encoded(event) if producer is not None else None
        if body is None:
            return
        # Celery's heartbeats wait for the server, and would keep a worker from reconnecting or stopping.
        options |= {"retry": False, "retry_policy": None}
        try:
            producer.publish(
                body,
                routing_key=routing_key,
                exchange=self.exchange.name,
                declare=[self.exchange],
                content_type="application/json",
                content_encoding="utf-8",
                headers=self.headers,
                delivery_mode=self.delivery_mode,
                **options,
            )
        except Exception:
            if not self.buffer_while_offline:
                raise
            # As Celery does: events are sent when there is a connection again. A beat is late by then.
            if routing_key != _HEARTBEAT:
                self._outbound_buffer.append((event, routing_key))


def _encoded(event: Any) -> bytes | None:
    """Return an event, or a batch, as JSON, without events that cannot be encoded; None if none is left.

    A batch with such an event would be buffered, and fail again, for ever.
    """
    try:
        return msgspec.json.encode(event)
    except MALFORMED as error:
        if isinstance(event, list):
            events = [each for each in map(_encoded, event) if each is not None]
            return b"[" + b",".join(events) + b"]" if events else None
        _log.warning("dropped an event %s: %s", event.get("type"), type(error).__name__)
        return None


class Events(CeleryEvents):  # type: ignore[misc]
    """The events of a worker's application."""

    dispatcher_cls = Dispatcher


class EventSending(bootsteps.StartStopStep):  # type: ignore[misc]
    """Sends the waiting events regularly; the consumer sends the last ones when it ends."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: WorkController, **kwargs: object) -> None:
        super().__init__(worker, **kwargs)
        self._worker = worker
        self._ticker = Ticker("events", _EVERY_S, self._send)

    def start(self, worker: WorkController) -> None:
        """Start to send."""
        worker.app.context.on_close(self._ticker.stop)
        self._ticker.start()

    def _send(self) -> None:
        # The consumer makes a dispatcher for each connection.
        dispatcher = getattr(self._worker.consumer, "event_dispatcher", None)
        if dispatcher is not None and dispatcher.enabled:
            dispatcher.buffer_limit = _BATCH
            # The consumer does nothing with what Celery tells it of each event.
            dispatcher.on_send_buffered = None
            dispatcher.flush()
