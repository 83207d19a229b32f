"""Celery's consumer, but no way of losing the connection ends the worker."""

from __future__ import annotations

from contextlib import suppress
from queue import Empty

from celery.utils.threads import bound_open_broker_sockets
from celery.worker.consumer import Consumer
from celery.worker.consumer.consumer import COLLECT_SOCKET_TIMEOUT

__all__ = ["Reconnects"]


class Reconnects(Consumer):  # type: ignore[misc]
    """Ends what is being read before the connection is closed.

    Kombu reads the reply to a BRPOP that is under way when it closes a channel. Where that fails,
    the channel stays half open; Celery then closes it a second time, when its transport is gone,
    and the AttributeError of that would end the worker. It takes an ack that fails before the
    BRPOP does, as when a server dies under a busy worker.
    """

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Close the connection, so that the consumer is started again on a new one."""
        bound_open_broker_sockets(self.connection, COLLECT_SOCKET_TIMEOUT)
        for channel in list(self.connection.transport.channels):
            if getattr(channel, "_in_poll", None):
                with suppress(Empty, *self.connection_errors, *self.channel_errors):
                    channel._brpop_read()  # noqa: SLF001 - what its close() does
        super().on_connection_error_after_connected(exc)

    def on_send_event_buffered(self) -> None:
        """Let events gather for ``workers.events``, which sends them.

        Celery would send them at the next turn of its loop: each by itself, as good as.
        """

    def shutdown(self) -> None:
        """Send the events of the last tasks: the pool has stopped by now."""
        self._flush_events()
        super().shutdown()
