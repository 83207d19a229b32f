"""Leases by the server's clock: those of machines differ.

Kombu writes down when a message was taken by the clock of the worker that takes it, and looks for
what has lapsed by the clock of the worker that looks. Where these differ by more than the
visibility timeout, a living worker's messages are put back at once, and a dead one's as much too
late. So here, whoever takes a message, renews its lease or looks for lapsed ones does it by the
one clock that all share. The same goes for the time before which a task that is tried again shall
not begin: Celery has one worker write it, and another one wait for it.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

from celery.app.amqp import AMQP
from celery.worker.request import Request
from kombu import Connection
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from kombu.utils.json import dumps

from fanout.errors import BrokerError
from fanout.stores.redis.base import seconds
from fanout.stores.redis.scripts import RENEW, TAKE

if TYPE_CHECKING:
    import redis
    from celery import Celery
    from kombu.message import Message

__all__ = ["ServerClockAMQP", "ServerClockQoS", "ServerClockRequest", "renew"]


class ServerClockQoS(kombu_redis.QoS):  # type: ignore[misc]
    """What a channel has taken and not settled, with the server's time of taking."""

    def append(self, message: Message, delivery_tag: str) -> None:
        """Remember a message that was taken: what kombu writes, but for the clock."""
        delivery = message.delivery_info
        taken = dumps([message._raw, delivery["exchange"], delivery["routing_key"]])  # noqa: SLF001 - as kombu does
        with self.channel.conn_or_acquire() as client:
            take = client.register_script(TAKE)
            take(keys=[self.unacked_index_key, self.unacked_key], args=[delivery_tag, taken])
        # Past kombu's own, which would write it again.
        virtual.QoS.append(self, message, delivery_tag)

    @property
    def visibility_timeout(self) -> float:
        """Seconds until a lease lapses, as seen from this machine's clock.

        Kombu asks each time that it looks, and subtracts it from this machine's time.
        """
        with self.channel.conn_or_acquire() as client:
            ahead_s = time.time() - seconds(client.time())
        return cast("float", self.channel.visibility_timeout) + ahead_s


def renew(client: redis.Redis, index: str, tags: list[str]) -> None:
    """Have the leases of those messages that are still taken begin now."""
    client.register_script(RENEW)(keys=[index], args=tags)


class _Channel(kombu_redis.Channel):  # type: ignore[misc]
    QoS = ServerClockQoS


class _Transport(kombu_redis.Transport):  # type: ignore[misc]
    Channel = _Channel


class _SentinelChannel(kombu_redis.SentinelChannel):  # type: ignore[misc]
    QoS = ServerClockQoS


class _SentinelTransport(kombu_redis.SentinelTransport):  # type: ignore[misc]
    Channel = _SentinelChannel


_TRANSPORTS = {
    kombu_redis.Transport: _Transport,
    kombu_redis.SentinelTransport: _SentinelTransport,
}


class _Connection(Connection):  # type: ignore[misc]
    def get_transport_cls(self) -> Any:
        # Not as the URL's scheme or ``broker_transport``: the first is shown to users, the second
        # is forgotten when kombu goes on to the next sentinel.
        found = super().get_transport_cls()
        return _TRANSPORTS.get(found, found)


def _ahead(app: Celery) -> timedelta:
    """Return by how much this machine's clock is ahead; nothing where the server is away."""
    try:
        return timedelta(seconds=time.time() - app.fanout_runtime().watched.now())
    except BrokerError:
        return timedelta()


class ServerClockAMQP(AMQP):  # type: ignore[misc]
    """Celery's view of the broker, where leases and times to begin are the server's."""

    Connection = _Connection
    BrokerConnection = _Connection

    def as_task_v2(
        self,
        task_id: str,
        name: str,
        args: Any = None,
        kwargs: Any = None,
        countdown: float | None = None,
        eta: Any = None,
        *rest: Any,
        **options: Any,
    ) -> Any:
        """Return a task's message: what has a countdown begins at a time of the server's."""
        if countdown:
            eta = datetime.now(UTC) - _ahead(self.app) + timedelta(seconds=countdown)
        return super().as_task_v2(task_id, name, args, kwargs, None, eta, *rest, **options)


class ServerClockRequest(Request):  # type: ignore[misc]
    """A task that a worker has received; where it has a time to begin, that is the server's."""

    def __init__(self, *args: Any, app: Celery, **options: Any) -> None:
        super().__init__(*args, app=app, **options)
        if self._eta is not None:
            self._eta += _ahead(app)
