"""Kombu's Redis transport with limits: what is too large, or no message, is dropped.

A worker reads whatever is in its queues. Kombu alone lets an item that is no message, or one that
cannot be decoded, end the consumer, and the next one after it.
Leases go by the server's clock (fanout.qos).
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from contextlib import contextmanager
from queue import Empty
from typing import TYPE_CHECKING, Any

from celery.app.amqp import AMQP
from kombu import Connection
from kombu.connection import ConnectionPool, PooledConnection
from kombu.transport import redis as kombu_redis

from fanout.errors import BrokerError
from fanout.qos import ServerClockQoS

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LimitedAMQP", "Refusals", "refusals"]

# Of what was refused, one line a second says so: a flood must not fill the disk with lines.
_SAYS_EVERY_S = 1.0
# Where a message may be large, its size is determined exactly.
_ENVELOPE_BYTES = 4_000
# What an item that is no message makes kombu raise, beyond the errors of a connection.
_MALFORMED = (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError)

_log = logging.getLogger(__name__)


class Refusals:
    """Counts what was refused, by reason, and says so without flooding the log."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._said_at = float("-inf")

    def add(self, reason: str, detail: str = "") -> None:
        """Count a message that is dropped. ``detail`` is what may be said: no content."""
        with self._lock:
            self.counts[reason] += 1
            total = self.counts.total()
            now = time.monotonic()
            if now - self._said_at < _SAYS_EVERY_S:
                return
            self._said_at = now
        about = f" ({detail})" if detail else ""
        _log.error("dropped a message that %s%s; %d dropped so far", reason, about, total)


refusals = Refusals()


class _LimitedMessage(kombu_redis.Channel.Message):  # type: ignore[misc]
    def __init__(self, payload: dict[str, Any], channel: Any = None, **kwargs: Any) -> None:
        if (payload.get("headers") or {}).get("compression"):
            # A few bytes may become many: nothing of ours is compressed.
            raise ValueError("compressed")
        super().__init__(payload, channel=channel, **kwargs)
        if channel is not None:
            channel.is_message = True


class _Limited:
    """What the channels of both transports change in kombu's."""

    Message = _LimitedMessage
    QoS = ServerClockQoS
    max_message_bytes = 0
    # Whether what is being read has turned out to be a message.
    is_message = False

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        size = len(message["body"]) + _ENVELOPE_BYTES
        if 2 * size > self.max_message_bytes:
            size = len(json.dumps(message, default=str))
        if size > self.max_message_bytes:
            raise BrokerError(
                f"a message of {size / 1000:,.0f} kB is larger than FANOUT_MAX_MESSAGE_KB allows "
                f"({self.max_message_bytes // 1000:,})"
            )
        super()._put(queue, message, **kwargs)  # type: ignore[misc]

    def _create_client(self, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002 - kombu's
        client = super()._create_client(asynchronous=asynchronous)  # type: ignore[misc]
        if asynchronous:
            client.set_response_callback("BRPOP", self._within_limit)
        return client

    def _within_limit(self, answer: list[bytes] | None) -> list[bytes] | None:
        """Return the answer to a BRPOP, or None, as after a timeout, where it is too large."""
        if answer and len(answer[1]) > self.max_message_bytes:
            refusals.add("is too large", f"{len(answer[1]) / 1000:,.0f} kB")
            return None
        return answer

    def _brpop_read(self, **options: Any) -> Any:
        with self._dropping():
            return super()._brpop_read(**options)  # type: ignore[misc]

    def _handle_message(self, client: Any, answer: list[Any]) -> dict[str, Any]:
        """Return a broadcast, without its data where that cannot be used: kombu would log it."""
        payload: dict[str, Any] = super()._handle_message(client, answer)  # type: ignore[misc]
        data = payload["data"]
        # Of a subscription it is a number.
        is_text = isinstance(data, (bytes, str))
        if is_text and (len(data) > self.max_message_bytes or not _is_json(data)):
            refusals.add("is no broadcast")
            payload["data"] = None
        return payload

    def _deliver_fanout_message(self, message: Any, exchange: str) -> Any:
        with self._dropping():
            return super()._deliver_fanout_message(message, exchange)  # type: ignore[misc]

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        """Drop what is no message. It is out of its queue, and no worker can read it."""
        self.is_message = False
        try:
            yield
        except _MALFORMED as error:
            if self.is_message:
                raise
            refusals.add("cannot be decoded", type(error).__name__)
            raise Empty from None


def _is_json(data: bytes | str) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


class _Channel(_Limited, kombu_redis.Channel):  # type: ignore[misc]
    from_transport_options = (*kombu_redis.Channel.from_transport_options, "max_message_bytes")


class _SentinelChannel(_Limited, kombu_redis.SentinelChannel):  # type: ignore[misc]
    from_transport_options = (
        *kombu_redis.SentinelChannel.from_transport_options,
        "max_message_bytes",
    )


class _Transport(kombu_redis.Transport):  # type: ignore[misc]
    Channel = _Channel


class _SentinelTransport(kombu_redis.SentinelTransport):  # type: ignore[misc]
    Channel = _SentinelChannel


_LIMITED = {
    kombu_redis.Transport: _Transport,
    kombu_redis.SentinelTransport: _SentinelTransport,
}


class _OurTransport:
    """Keeps the scheme of a connection's URL, which monitors read, but not kombu's transport."""

    def get_transport_cls(self) -> type:
        transport: type = super().get_transport_cls()  # type: ignore[misc]
        return _LIMITED.get(transport, transport)

    def info(self) -> dict[str, Any]:
        """Return what Celery tells whoever asks a worker for its statistics: no passwords."""
        info: dict[str, Any] = super().info()  # type: ignore[misc]
        options = dict(info.get("transport_options") or {})
        if options.get("sentinel_kwargs"):
            options["sentinel_kwargs"] = {
                name: value
                for name, value in options["sentinel_kwargs"].items()
                if name != "password"
            }
        return {**info, "transport_options": options}


class _LimitedPooledConnection(_OurTransport, PooledConnection):  # type: ignore[misc]
    pass


class _LimitedPool(ConnectionPool):  # type: ignore[misc]
    def new(self) -> _LimitedPooledConnection:
        return _LimitedPooledConnection(self, **dict(self.connection._info(resolve=False)))  # noqa: SLF001 - as kombu's


class _LimitedConnection(_OurTransport, Connection):  # type: ignore[misc]
    def Pool(self, limit: int | None = None, **kwargs: Any) -> _LimitedPool:  # noqa: N802 - kombu's
        return _LimitedPool(self, limit, **kwargs)


class LimitedAMQP(AMQP):  # type: ignore[misc]
    """Gives a Celery application connections with limits."""

    Connection = _LimitedConnection
