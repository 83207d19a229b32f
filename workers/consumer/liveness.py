"""Tells whether a worker's consumer takes messages: a worker can be alive and take none.

That happens: a consumer whose connection was replaced may answer pings and look at no queue. So it
is not enough that the process lives, or that its event loop turns.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from celery.worker import state

from fanout.core.queue_names import CONTROL_QUEUE
from workers.consumer.task_requests import BranchRequest
from workers.context.app import context_of

if TYPE_CHECKING:
    from celery.worker.consumer import Consumer
    from kombu.asynchronous import Hub

__all__ = ["Polls"]

_LOOK_S = 1.0


class Polls:
    """Knows when a consumer last asked its queues for messages.

    Attributes:
        polled_at: When it did, or when it last had every slot taken, and so had not to ask;
            seconds since the epoch, 0.0 as long as it never did.
    """

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self.polled_at = 0.0

    def register_with_event_loop(self, hub: Hub) -> None:
        """Look at the polls for as long as this connection's event loop turns."""
        # On the loop, on purpose: one that stands still says nothing.
        hub.call_repeatedly(_LOOK_S, self._look)

    def _take_control(self, channel: Any) -> None:
        """Take control messages while all slots are taken by calls, which may be long.

        Somebody waits for what they ask; they need no slot, where the pool has room besides.
        """
        room = getattr(self._consumer.pool, "control_room", 0) - _others_at_hand()
        if room > 0 and not channel.qos.is_barred and CONTROL_QUEUE in channel.active_queues:
            channel.take_control(room)

    def _look(self) -> None:
        channel: Any = getattr(self._consumer.task_consumer, "channel", None)
        if channel is None:
            return
        storage = context_of(self._consumer).checks.storage
        channel.qos.is_barred = bool(storage.problem)
        # Kombu asks again as soon as it was answered, and is answered within a second.
        asked_at = channel._brpop_sent_at  # noqa: SLF001 - nothing else tells
        if not channel.qos.can_consume():
            # With nothing at hand it would wait for a slot that nobody gives back.
            if state.requests:
                self.polled_at = time.time()
            if asked_at is None or time.monotonic() - asked_at >= _LOOK_S:
                self._take_control(channel)
            return
        if asked_at is not None:
            self.polled_at = time.time() - (time.monotonic() - asked_at)


def _others_at_hand() -> int:
    while True:
        try:
            return sum(not isinstance(each, BranchRequest) for each in state.reserved_requests)
        except RuntimeError:
            # One came or went meanwhile.
            continue
