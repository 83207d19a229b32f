"""Checks that a worker's consumer polls its queues: a worker can be alive and take no messages.

A consumer whose connection was replaced may answer pings and still poll no queue. So a live process
and a running event loop are not enough.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from celery.worker import state
from redis.exceptions import RedisError

from fanout.core.queue_names import CONTROL_QUEUE
from fanout.system.threads import copied
from workers.consumer.task_requests import BranchRequest
from workers.context.app import context_of

if TYPE_CHECKING:
    from celery.worker.consumer import Consumer
    from kombu.asynchronous import Hub

__all__ = ["PollMonitor"]

_CHECK_S = 1.0

_log = logging.getLogger(__name__)


class PollMonitor:
    """Records when a consumer last polled its queues.

    Attributes:
        polled_at: When the consumer last polled, or last had no free place and so did not need to;
            seconds since the epoch, 0.0 before the first poll.
    """

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self.polled_at = 0.0

    def register_with_event_loop(self, hub: Hub) -> None:
        """Check the polls while the event loop of this connection runs."""
        # On the loop on purpose: a blocked loop then updates nothing.
        hub.call_repeatedly(_CHECK_S, self._check)

    def _take_control(self, channel: Any) -> None:
        """Take control messages while calls, which may be long, use all places.

        Clients wait for control tasks, which need no place if the pool has room for them.
        """
        running = sum(
            not isinstance(each, BranchRequest) for each in copied(state.reserved_requests)
        )
        room = getattr(self._consumer.pool, "control_room", 0) - running
        if room > 0 and not channel.qos.is_barred and CONTROL_QUEUE in channel.active_queues:
            channel.take_control(room)

    def _check(self) -> None:
        channel: Any = getattr(self._consumer.task_consumer, "channel", None)
        if channel is None:
            return
        storage = context_of(self._consumer).storage
        channel.qos.is_barred = bool(storage.problem)
        # Kombu polls again as soon as it has a reply, and gets each reply within a second.
        asked_at = channel._brpop_sent_at  # noqa: SLF001 - no public API
        if not channel.qos.can_consume():
            # Without requests, no place would ever become free: this is a fault, not a busy worker.
            if state.requests:
                self.polled_at = time.time()
            if asked_at is None or time.monotonic() - asked_at >= _CHECK_S:
                try:
                    self._take_control(channel)
                except RedisError as error:
                    # The server refuses writes; the messages stay in the queue.
                    _log.warning("no control messages are taken: %s", error)
            return
        if asked_at is not None:
            self.polled_at = time.time() - (time.monotonic() - asked_at)
