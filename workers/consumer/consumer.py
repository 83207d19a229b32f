"""Celery's consumer, but neither a lost connection nor a bad message ends the worker."""

from __future__ import annotations

import logging
import time
import warnings
from contextlib import suppress
from queue import Empty
from typing import TYPE_CHECKING, Any

from celery.exceptions import CPendingDeprecationWarning
from celery.utils.threads import bound_open_broker_sockets
from celery.worker.consumer import Consumer
from celery.worker.consumer.consumer import COLLECT_SOCKET_TIMEOUT
from celery.worker.state import maybe_shutdown

from fanout.broker.rejected import refusals
from fanout.core.exhaustion import is_exhausted
from workers.consumer.control_commands import refuse_orders
from workers.consumer.envelope import fault
from workers.consumer.pool import TaskPool, taken_ahead

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Careful", "Reconnects"]

# How soon it is tried again to connect where the process has nothing left for it.
_AGAIN_S = 1.0

_log = logging.getLogger(__name__)


class Reconnects(Consumer):  # type: ignore[misc]
    """Ends what is being read before the connection is closed.

    Kombu reads the reply to a BRPOP that is under way when it closes a channel. Where that fails,
    the channel stays half open; Celery then closes it a second time, when its transport is gone,
    and the AttributeError of that would end the worker. It takes an ack that fails before the
    BRPOP does, as when a server dies under a busy worker.
    """

    def __init__(
        self, *args: Any, pool: Any = None, initial_prefetch_count: int = 2, **kwargs: Any
    ) -> None:
        self._ahead = 0
        if isinstance(pool, TaskPool):
            self._ahead = taken_ahead(initial_prefetch_count)
            initial_prefetch_count += self._ahead
        super().__init__(*args, pool=pool, initial_prefetch_count=initial_prefetch_count, **kwargs)

    def connect(self) -> Any:
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

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Close the connection, so that the consumer is started again on a new one."""
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
        """Return what is called with each message of this connection."""
        self.task_consumer.channel.qos.ahead = self._ahead
        handler: Callable[[Any], Any] = super().create_task_handler(**kwargs)
        return handler

    def on_send_event_buffered(self) -> None:
        """Let events gather for ``workers.telemetry.events``, which sends them.

        Celery would send them at the next turn of its loop: each by itself, as good as.
        """

    def shutdown(self) -> None:
        """Send the events of the last tasks: the pool has stopped by now."""
        self._flush_events()
        super().shutdown()


class Careful(Reconnects):
    """Drops every message that is not one of fanout's, and says so without its content.

    Celery logs the body of what it drops, and ends at what its own checks let through; the next
    worker would then take the same message, and end as well.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        refuse_orders(self)

    def create_task_handler(self, **kwargs: Any) -> Callable[[Any], Any]:
        """Return what is called with each message."""
        handle = super().create_task_handler(**kwargs)

        def handle_if_sound(message: Any) -> Any:
            found = fault(message)
            return self._drop(message, found) if found else handle(message)

        return handle_if_sound

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
        refusals.add(reason, detail)
        message.reject_log_error(_log, self.connection_errors)
