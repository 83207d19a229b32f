"""Celery's consumer, but neither a lost connection nor a bad message ends the worker.

What it checks, and what it looks at, is in modules of its own: envelope, message_versions,
control_commands and liveness.
"""

from __future__ import annotations

import logging
import time
import warnings
from contextlib import suppress
from queue import Empty
from typing import TYPE_CHECKING, Any

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
from workers.consumer.control_commands import refuse_orders
from workers.consumer.envelope import fault
from workers.consumer.liveness import Polls
from workers.consumer.message_versions import settle_other_version, version_of
from workers.consumer.pool import TaskPool, taken_ahead
from workers.context.app import context_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from kombu.asynchronous import Hub

__all__ = ["Consumer"]

# How soon it is tried again to connect where the process has nothing left for it.
_AGAIN_S = 1.0

_log = logging.getLogger(__name__)


class Consumer(CeleryConsumer):  # type: ignore[misc]
    """Takes the messages of fanout, of one version, and no others, and survives lost connections."""

    def __init__(
        self,
        *args: Any,
        pool: Any = None,
        initial_prefetch_count: int = 2,
        worker_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # No context yet: prefork children are forked later, and threads do not survive that.
        self._ahead = 0
        self._polls = Polls(self)
        if isinstance(pool, TaskPool):
            self._ahead = taken_ahead(initial_prefetch_count)
            initial_prefetch_count += self._ahead
        # Mingling costs a second of every reconnect, and nothing here uses what workers tell each
        # other. By gossip, anybody who publishes events could have workers elect and run something.
        never = {"without_mingle": True, "without_gossip": True}
        super().__init__(
            *args,
            pool=pool,
            initial_prefetch_count=initial_prefetch_count,
            worker_options={**(worker_options or {}), **never},
            **kwargs,
        )
        refuse_orders(self)

    @property
    def polled_at(self) -> float:
        """When it last asked its queues for messages: see ``Polls``."""
        return self._polls.polled_at

    def connect(self) -> Any:
        """Connect, and ask for the fleet's version before the first message is taken."""
        connection = self._connect()
        gate = context_of(self).checks.version_gate
        gate.when_refused(lambda: self.hub.call_soon(_shut_down))
        try:
            is_spoken = gate.is_spoken()
        except BrokerError as error:
            # The connection will tell; a server that is full answers no better later on.
            _log.warning("cannot ask which version of the wire format the fleet speaks: %s", error)
        else:
            if not is_spoken:
                connection.close()
                _shut_down()
        return connection

    def _connect(self) -> Any:
        """Connect; while this process has no descriptor for that, wait for one.

        Celery's way to wait for a server needs one itself, and so would end the worker.
        """
        while True:
            try:
                return super().connect()
            except Exception as error:
                if not is_exhausted(error):
                    raise
                _log.warning("cannot connect for now: %s", error)
            maybe_shutdown()
            time.sleep(_AGAIN_S)

    def register_with_event_loop(self, hub: Hub) -> None:
        """Have this connection's event loop look at the polls for as long as it turns."""
        super().register_with_event_loop(hub)
        self._polls.register_with_event_loop(hub)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """End what is being read, and close the connection: the consumer starts again on a new one.

        Kombu reads the reply to a BRPOP that is under way when it closes a channel. Where that
        fails, the channel stays half open; Celery then closes it a second time, when its transport
        is gone, and the AttributeError of that would end the worker. It takes an ack that fails
        before the BRPOP does, as when a server dies under a busy worker.
        """
        bound_open_broker_sockets(self.connection, COLLECT_SOCKET_TIMEOUT)
        for channel in list(self.connection.transport.channels):
            if getattr(channel, "_in_poll", None):
                with suppress(Empty, *self.connection_errors, *self.channel_errors):
                    channel._brpop_read()  # noqa: SLF001 - what its close() does
        with warnings.catch_warnings():
            # Of a setting that Celery may change: it would end the worker of a program in which
            # warnings are errors.
            warnings.simplefilter("ignore", CPendingDeprecationWarning)
            super().on_connection_error_after_connected(exc)

    def create_task_handler(self, **kwargs: Any) -> Callable[[Any], Any]:
        """Return what Celery calls with each message of this connection.

        Celery logs the body of what it drops, and ends at what its own checks let through; the next
        worker would then take the same message, and end as well. So they are checked before.
        """
        self.task_consumer.channel.qos.ahead = self._ahead
        handle: Callable[[Any], Any] = super().create_task_handler(**kwargs)
        self._look_at_storage()
        gate = context_of(self).checks.version_gate

        def on_message(message: Any) -> Any:
            # Before its envelope: another version may have another one.
            if version_of(message.headers) != WIRE_VERSION:
                settle_other_version(message, gate, self.connection_errors)
                return None
            found = fault(message)
            return self._drop(message, found) if found else handle(message)

        return on_message

    def _look_at_storage(self) -> None:
        """See, before the first message, whether the storage is the fleet's."""
        storage = context_of(self).checks.storage
        try:
            storage.look(at_once=True)
        except BrokerError as error:
            _log.warning("cannot ask which storage the fleet uses: %s", error)
        self.task_consumer.channel.qos.is_barred = bool(storage.problem)

    def cancel_active_requests(self) -> None:
        """Hand back what is in flight, on a second SIGINT or on SIGQUIT.

        Celery would terminate the tasks, which it cannot in a pool of threads.
        """
        context_of(self).hand_back.all()

    def on_send_event_buffered(self) -> None:
        """Let events gather for ``workers.telemetry.events``, which sends them.

        Celery would send them at the next turn of its loop: each by itself, as good as.
        """

    def shutdown(self) -> None:
        """Send the events of the last tasks: the pool has stopped by now."""
        self._flush_events()
        super().shutdown()

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Drop a message whose content cannot be decoded."""
        self._drop(message, "cannot be decoded", type(exc).__name__)

    def on_unknown_message(self, body: Any, message: Any) -> None:  # noqa: ARG002 - Celery's
        """Drop a message that is for nobody."""
        self._drop(message, "names no task")

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ARG002
        """Drop a message for a task that there is not."""
        self._drop(message, "names a task that is not fanout's")

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ARG002
        """Drop a message that Celery cannot make a task of."""
        self._drop(message, "is no valid task", type(exc).__name__)

    def _drop(self, message: Any, reason: str, detail: str = "") -> None:
        dropped_messages.add(reason, detail)
        message.reject_log_error(_log, self.connection_errors)


def _shut_down() -> None:
    raise WorkerShutdown(EX_FAILURE)
