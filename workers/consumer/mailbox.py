"""The replies of a worker to control commands, which wait for no server."""

from __future__ import annotations

from typing import Any

from celery.app.control import Control as CeleryControl
from kombu.pidbox import Mailbox as KombuMailbox

__all__ = ["Control"]


class _Once:
    """Publishes without a wait for the server, if it is gone."""

    def __init__(self, producer: Any) -> None:
        self._producer = producer

    def publish(self, body: Any, **options: Any) -> None:
        self._producer.publish(body, **{**options, "retry": False})


class Mailbox(KombuMailbox):  # type: ignore[misc]
    """Publishes each reply once: to wait for the server would keep a worker from stopping."""

    def _publish_reply(
        self, *args: Any, channel: Any = None, producer: Any = None, **options: Any
    ) -> None:
        with self.producer_or_acquire(producer, channel) as found:
            super()._publish_reply(*args, channel=channel, producer=_Once(found), **options)


class Control(CeleryControl):  # type: ignore[misc]
    """The control of a worker's application."""

    Mailbox = Mailbox
