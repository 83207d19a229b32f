"""Kombu's Redis transport, changed to drop items that are too large or are no messages.

In kombu, an item that is no message, or that cannot be decoded, ends each consumer that reads it.
Leases go by the server's clock (fanout.broker.message_leases).
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from functools import cached_property
from queue import Empty
from typing import TYPE_CHECKING, Any

import msgspec
import redis
from celery.app.amqp import AMQP
from kombu import Connection
from kombu.connection import ConnectionPool, PooledConnection
from kombu.exceptions import OperationalError
from kombu.transport import redis as kombu_redis
from kombu.utils.json import loads

from fanout.broker.dropped import MALFORMED, dropped_messages
from fanout.broker.message_leases import ServerClockQoS
from fanout.broker.turn_puts import TurnPuts
from fanout.core.queue_names import (
    BRANCHES_QUEUE,
    CONTROL_QUEUE,
    QUEUES,
)
from fanout.stores.connection import DRIVER
from fanout.stores.connection_pool import FastPool
from fanout.stores.failover import WatchedConnection
from fanout.stores.functions import FunctionsClient
from fanout.stores.retrying import call_with_retries, is_recoverable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


__all__ = ["LimitedAMQP"]

# Allowance for headers and properties. The size of a message near the limit is determined exactly.
_ENVELOPE_BYTES = 4_000
# Further messages to take with one, or this fraction of the room if that is more. So a distant
# server costs few round trips, and a fair share is left to other workers.
_MORE = 31
_PART = 4
# The transport options of the channels here, which are also their attributes.
_OPTIONS = ("max_message_bytes", "run_keys")
# After this time the reaper heals the run.
_CALLBACK_PATIENCE_S = 3_600.0


class _LimitedMessage(kombu_redis.Channel.Message):  # type: ignore[misc]
    def __init__(self, payload: dict[str, Any], channel: Any = None, **kwargs: Any) -> None:
        if (payload.get("headers") or {}).get("compression"):
            # A few bytes could expand to many. fanout compresses no messages.
            raise ValueError("compressed")
        super().__init__(payload, channel=channel, **kwargs)
        if channel is not None:
            channel.is_message = True

    def keep(self, args: Any, kwargs: Any, rest: Any) -> None:
        """Take a task's body as decoded: arguments by position, by name, and the rest."""
        self._decoded_cache = (args, kwargs, rest)

    def _decode(self) -> Any:
        """Return the body; a task's has only JSON's own types."""
        if self.content_type == "application/json" and "task" in self.headers:
            return msgspec.json.decode(self.body)
        return super()._decode()


class _ChannelLimits(TurnPuts):
    """The changes that the channels of both transports make to kombu's."""

    qos: Any
    client: Any
    connection: Any
    pool: Any
    connection_errors: tuple[type[Exception], ...]
    _queue_cycle: Any
    _flush_brpop_reauth: Callable[[], None]

    Message = _LimitedMessage
    QoS = ServerClockQoS
    # Whether the item that is being read is a message.
    is_message = False
    _made: Any = None
    _recorded: list[tuple[str, dict[str, Any]]] | None = None

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        size = len(message["body"]) + _ENVELOPE_BYTES
        if 2 * size > self.max_message_bytes:
            size = len(json.dumps(message, default=str))
        self.require_size(size)
        if self._recorded is not None:
            self._recorded.append((queue, message))
            return
        super()._put(queue, message, **kwargs)  # type: ignore[misc]

    def maybe_refresh_binding_expiry(self) -> None:
        """Do what kombu does, but write no traceback where the server refuses it for now."""
        try:
            super().maybe_refresh_binding_expiry()  # type: ignore[misc]
        except redis.ResponseError as error:
            if not is_recoverable(error):
                raise

    @contextmanager
    def recording(self) -> Iterator[list[tuple[str, dict[str, Any]]]]:
        """Collect published messages with their queues instead of sending them."""
        self._recorded = []
        try:
            yield self._recorded
        finally:
            self._recorded = None

    def _get_client(self) -> type[FunctionsClient]:
        super()._get_client()  # type: ignore[misc]
        return FunctionsClient

    def _create_client(self, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002 - kombu's
        if not asynchronous:
            return self._client_of_pool()
        client = super()._create_client(asynchronous=True)  # type: ignore[misc]
        client.set_response_callback("BRPOP", self._within_limit)
        return client

    def _client_of_pool(self) -> Any:
        """Return a client of the channel's pool; reuse it as long as the pool is the same.

        Kombu makes a client for each acknowledgement, which costs more than the round trip.
        """
        made = self._made
        if made is None or made.connection_pool is not self.pool:
            made = self._made = super()._create_client(asynchronous=False)  # type: ignore[misc]
        return made

    def _within_limit(self, answer: list[bytes] | None) -> list[bytes] | None:
        """Return the answer to a BRPOP, or None, as after a timeout, if it is too large."""
        return None if answer and self._is_too_large(answer[1]) else answer

    def _is_too_large(self, message: bytes) -> bool:
        """Return whether a message is too large, and count it as dropped then."""
        if len(message) <= self.max_message_bytes:
            return False
        dropped_messages.add("is too large", f"{len(message) / 1000:,.0f} kB")
        return True

    def _brpop_read(self, **options: Any) -> Any:
        """Deliver a message and some that wait behind it, with the same round trips."""
        try:
            answer = self._answer_to_brpop(options)
            if not answer:
                raise Empty
            queue = answer[0].decode()
            self._queue_cycle.rotate(queue)
            if queue in QUEUES:
                self._deliver_all(queue, self._take(queue, answer[1]))
            else:
                # A reply to a monitor's broadcast.
                with self._dropping:
                    self.connection._deliver(msgspec.json.decode(answer[1]), queue)  # noqa: SLF001
            return True
        finally:
            # As in kombu's own method.
            self._in_poll = None
            self._flush_brpop_reauth()

    def _answer_to_brpop(self, options: dict[str, Any]) -> list[bytes] | None:
        connection = self.client.connection
        try:
            answer: list[bytes] | None = self.client.parse_response(connection, "BRPOP", **options)
        except self.connection_errors:
            # The next iteration of the loop reconnects.
            connection.disconnect()
            raise
        return answer

    def _take(self, queue: str, message: bytes) -> list[tuple[str, bytes]]:
        """Take further messages while there is room; control messages one at a time."""
        room = self.qos.can_consume_max_estimate() or 1
        more = min(max(_MORE, room // _PART), room - 1) if queue == BRANCHES_QUEUE else 0
        taken: list[tuple[str, bytes]] = self.qos.take(queue, message, more=more)
        return taken

    def take_control(self, most: int) -> None:
        """Take up to ``most`` control messages although there is no room for branches."""
        for _ in range(most):
            with self.conn_or_acquire() as client:
                message = client.rpop(CONTROL_QUEUE)
            if message is None:
                return
            self._deliver_all(CONTROL_QUEUE, self.qos.take(CONTROL_QUEUE, message, more=0))

    def _deliver_all(self, queue: str, taken: list[tuple[str, bytes]]) -> None:
        delivered = 0
        try:
            for tag, message in taken:
                delivered += 1
                self._deliver_one(queue, tag, message)
        finally:
            # If the worker stops in the middle, other workers get the rest.
            for tag, _ in reversed(taken[delivered:]):
                self.qos.restore_by_tag(tag)

    def _deliver_one(self, queue: str, tag: str, message: bytes) -> None:
        if self._is_too_large(message):
            self.qos.drop(tag)
            return
        try:
            with self._dropping:
                payload = msgspec.json.decode(message)
                payload["properties"]["delivery_tag"] = tag
                self.connection._deliver(payload, queue)  # noqa: SLF001 - as kombu does
        except Empty:
            self.qos.drop(tag)

    def _handle_message(self, client: Any, answer: list[Any]) -> dict[str, Any]:
        """Return a broadcast; remove invalid data, as kombu would log it."""
        payload: dict[str, Any] = super()._handle_message(client, answer)  # type: ignore[misc]
        data = payload["data"]
        # The data of a subscription is a number.
        is_text = isinstance(data, (bytes, str))
        if is_text and (len(data) > self.max_message_bytes or not _is_json(data)):
            dropped_messages.add("is no broadcast")
            payload["data"] = None
        return payload

    def _deliver_fanout_message(self, message: Any, exchange: str) -> Any:
        with self._dropping:
            return super()._deliver_fanout_message(message, exchange)  # type: ignore[misc]

    @cached_property
    def _dropping(self) -> _DropMalformed:
        return _DropMalformed(self)


class _DropMalformed:
    """Drops an item that is no message. It has left its queue, and no worker can read it."""

    def __init__(self, channel: _ChannelLimits) -> None:
        self._channel = channel

    def __enter__(self) -> None:
        self._channel.is_message = False

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, MALFORMED) and not self._channel.is_message:
            dropped_messages.add("cannot be decoded", type(error).__name__)
            raise Empty from None


def _is_json(data: bytes | str) -> bool:
    try:
        # By kombu's decoder, which converts some objects to other types.
        loads(data)
    except MALFORMED:
        return False
    return True


class _Channel(_ChannelLimits, kombu_redis.Channel):  # type: ignore[misc]
    from_transport_options = (*kombu_redis.Channel.from_transport_options, *_OPTIONS)

    def _get_pool(self, asynchronous: bool = False) -> FastPool:  # noqa: FBT001, FBT002 - kombu's
        """Return a pool of the connections that kombu's own one would make."""
        super()._get_pool(asynchronous=asynchronous)
        return FastPool(**self._connparams(asynchronous=asynchronous), driver_info=DRIVER)


class _SentinelChannel(_ChannelLimits, kombu_redis.SentinelChannel):  # type: ignore[misc]
    connection_class = WatchedConnection
    from_transport_options = (*kombu_redis.SentinelChannel.from_transport_options, *_OPTIONS)


class _Transport(kombu_redis.Transport):  # type: ignore[misc]
    Channel = _Channel


class _SentinelTransport(kombu_redis.SentinelTransport):  # type: ignore[misc]
    Channel = _SentinelChannel


_TRANSPORTS = {
    kombu_redis.Transport: _Transport,
    kombu_redis.SentinelTransport: _SentinelTransport,
}


class _LimitedTransport:
    """Replaces kombu's transport, but keeps the scheme of the URL, which monitors read."""

    def get_transport_cls(self) -> type:
        transport: type = super().get_transport_cls()  # type: ignore[misc]
        return _TRANSPORTS.get(transport, transport)

    def info(self) -> dict[str, Any]:
        """Return the information for Celery's worker statistics, without passwords."""
        info: dict[str, Any] = super().info()  # type: ignore[misc]
        options = dict(info.get("transport_options") or {})
        if options.get("sentinel_kwargs"):
            options["sentinel_kwargs"] = {
                name: value
                for name, value in options["sentinel_kwargs"].items()
                if name != "password"
            }
        return {**info, "transport_options": options}


class _LimitedPooledConnection(_LimitedTransport, PooledConnection):  # type: ignore[misc]
    pass


class _LimitedPool(ConnectionPool):  # type: ignore[misc]
    def new(self) -> _LimitedPooledConnection:
        return _LimitedPooledConnection(self, **dict(self.connection._info(resolve=False)))  # noqa: SLF001 - as kombu's


class _LimitedConnection(_LimitedTransport, Connection):  # type: ignore[misc]
    def Pool(self, limit: int | None = None, **kwargs: Any) -> _LimitedPool:  # noqa: N802 - kombu's
        return _LimitedPool(self, limit, **kwargs)


def _without_none(argument: Any) -> Any:
    if not isinstance(argument, list):
        return argument
    return [each for each in argument if each is not None]


class LimitedAMQP(AMQP):  # type: ignore[misc]
    """Gives a Celery application connections with limits."""

    Connection = _LimitedConnection

    def _retry_publish(self, publish: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Publish a callback without the empty results of its chord's members.

        One word for each would make half a megabyte for a run with 100,000 shards.
        """
        arguments = [_without_none(each) for each in args]
        again = super()._retry_publish
        # The task that counts a chord's last member cannot repeat this: it would fail the chord.
        return call_with_retries(
            lambda: again(publish, *arguments, **kwargs),
            patience_s=_CALLBACK_PATIENCE_S,
            is_worth=lambda error: isinstance(error, OperationalError) or is_recoverable(error),
        )
