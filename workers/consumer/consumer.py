"""Celery's consumer, but neither a lost connection nor a bad message ends the worker.

Its collaborators check messages (envelope, version_gate), check broadcasts (control_commands)
and watch its polls (liveness).
"""

from __future__ import annotations

import logging
import time
import warnings
from contextlib import suppress
from queue import Empty
from typing import TYPE_CHECKING, Any

import redis
from celery.exceptions import CPendingDeprecationWarning, WorkerShutdown
from celery.platforms import EX_FAILURE
from celery.utils.threads import bound_open_broker_sockets
from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.consumer.consumer import COLLECT_SOCKET_TIMEOUT
from celery.worker.state import maybe_shutdown

from fanout.broker.dropped import dropped_messages
from fanout.core.errors import BrokerError
from fanout.core.exhaustion import is_exhausted
from fanout.core.version import WIRE_VERSION
from workers.consumer.control_commands import drop_invalid_broadcasts
from workers.consumer.envelope import find_fault
from workers.consumer.late_promises import LatePromise
from workers.consumer.liveness import PollMonitor
from workers.consumer.pool import AsyncioPool, taken_ahead
from workers.context.app import context_of
from workers.context.fleet_checks import version_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from kombu.asynchronous import Hub

__all__ = ["Consumer"]

# Seconds between attempts to connect while the process has no file descriptor for a connection, or the
# server refuses what a consumer begins with.
_RECONNECT_S = 1.0

_log = logging.getLogger(__name__)


class Consumer(CeleryConsumer):  # type: ignore[misc]
    """Takes only fanout's messages of one wire version, and survives lost connections."""

    def __init__(
        self,
        *args: Any,
        pool: Any = None,
        initial_prefetch_count: int = 2,
        worker_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # Make no context here: prefork children are forked later, and threads do not survive a fork.
        self._ahead = 0
        self._polls = PollMonitor(self)
        if isinstance(pool, AsyncioPool):
            self._ahead = taken_ahead(initial_prefetch_count)
            initial_prefetch_count += self._ahead
        # Mingling costs a second of every reconnect, and fanout does not use what workers exchange.
        # With gossip, any client that publishes events could make workers elect and run a task.
        disabled = {"without_mingle": True, "without_gossip": True}
        super().__init__(
            *args,
            pool=pool,
            initial_prefetch_count=initial_prefetch_count,
            worker_options={**(worker_options or {}), **disabled},
            **kwargs,
        )
        drop_invalid_broadcasts(self)

    @property
    def polled_at(self) -> float:
        """When the consumer last polled its queues: see ``PollMonitor``."""
        return self._polls.polled_at

    def connect(self) -> Any:
        """Connect, and check the fleet's wire version before taking the first message."""
        connection = self._connect()
        gate = context_of(self).version_gate
        gate.when_refused(lambda: self.hub.call_soon(_shut_down))
        try:
            is_spoken = gate.is_spoken()
        except BrokerError as error:
            # A lost connection shows up by itself, and a full server would refuse again later.
            _log.warning("cannot ask which version of the wire format the fleet speaks: %s", error)
        else:
            if not is_spoken:
                connection.close()
                _shut_down()
        return connection

    def _connect(self) -> Any:
        """Connect; while this process has no file descriptor left, wait for one.

        Celery's own retry needs a descriptor itself, and so would end the worker.
        """
        while True:
            try:
                return super().connect()
            except Exception as error:
                if not is_exhausted(error):
                    raise
                _log.warning("cannot connect for now: %s", error)
            maybe_shutdown()
            time.sleep(_RECONNECT_S)

    def register_with_event_loop(self, hub: Hub) -> None:
        """Monitor the polls while the event loop of this connection runs."""
        super().register_with_event_loop(hub)
        self._polls.register_with_event_loop(hub)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Finish a pending read and close the connection; the consumer restarts on a new one.

        Kombu reads the reply of a pending BRPOP when it closes a channel. If this read fails, the
        channel stays half open. Celery then closes it again after its transport is gone, and the
        AttributeError would end the worker. This happens if an ack fails before the BRPOP does,
        for example when a server dies while the worker is busy.
        """
        bound_open_broker_sockets(self.connection, COLLECT_SOCKET_TIMEOUT)
        for channel in list(self.connection.transport.channels):
            if getattr(channel, "_in_poll", None):
                with suppress(Empty, *self.connection_errors, *self.channel_errors):
                    channel._brpop_read()  # noqa: SLF001 - what its close() does
        with warnings.catch_warnings():
            # Celery warns that a setting may change. In a program that turns warnings into errors,
            # this would end the worker.
            warnings.simplefilter("ignore", CPendingDeprecationWarning)
            super().on_connection_error_after_connected(exc)
        _wait_after(exc)

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        """Wait after a refusal: Celery would try again at once."""
        super().on_connection_error_before_connected(exc)
        _wait_after(exc)

    def create_task_handler(self, **kwargs: Any) -> Callable[[Any], Any]:
        """Return the function that Celery calls with each message of this connection.

        Celery logs the body of a message that it drops. A bad message that passes Celery's own
        checks ends the worker, and then the next worker that takes it. So this handler checks
        each message first.
        """
        qos = self.task_consumer.channel.qos
        qos.ahead = self._ahead
        if isinstance(self.pool, AsyncioPool):
            qos.waiting = self.pool.count_waiting
        options = {"promise": LatePromise, **kwargs}
        handle: Callable[[Any], Any] = super().create_task_handler(**options)
        self._look_at_storage()
        gate = context_of(self).version_gate

        def on_message(message: Any) -> Any:
            # Check the version before the envelope, as the envelope may depend on the version.
            if version_of(message.headers) != WIRE_VERSION:
                gate.settle(message, self.connection_errors)
                return None
            fault = find_fault(message)
            return self._drop(message, fault) if fault else handle(message)

        return on_message

    def _look_at_storage(self) -> None:
        """Check, before the first message, that this worker uses the fleet's storage."""
        storage = context_of(self).storage
        try:
            storage.look(at_once=True)
        except BrokerError as error:
            _log.warning("cannot ask which storage the fleet uses: %s", error)
        self.task_consumer.channel.qos.is_barred = bool(storage.problem)

    def cancel_active_requests(self) -> None:
        """Hand back the branches in flight, on a second SIGINT or on SIGQUIT.

        Celery would terminate the tasks, which is impossible in a pool of threads.
        """
        context_of(self).hand_back.all()

    def on_send_event_buffered(self) -> None:
        """Leave events in the buffer: ``workers.telemetry.events`` sends them in batches.

        Celery would send them at the next iteration of its loop, almost one by one.
        """

    def shutdown(self) -> None:
        """Send the events of the last tasks; the pool has already stopped."""
        self._flush_events()
        super().shutdown()

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Drop a message whose content cannot be decoded."""
        self._drop(message, "cannot be decoded", type(exc).__name__)

    def on_unknown_message(self, body: Any, message: Any) -> None:  # noqa: ARG002 - Celery's
        """Drop a message that names no task."""
        self._drop(message, "names no task")

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ARG002
        """Drop a message for a task that does not exist."""
        self._drop(message, "names a task that is not fanout's")

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ARG002
        """Drop a message that Celery cannot turn into a task request."""
        self._drop(message, "is no valid task", type(exc).__name__)

    def _drop(self, message: Any, reason: str, detail: str = "") -> None:
        dropped_messages.add(reason, detail)
        message.reject_log_error(_log, self.connection_errors)


def _wait_after(exc: Exception) -> None:
    """Wait where the server answers but refuses, as without its replicas: that lasts for a while."""
    if isinstance(exc, redis.ResponseError):
        time.sleep(_RECONNECT_S)


def _shut_down() -> None:
    raise WorkerShutdown(EX_FAILURE)
