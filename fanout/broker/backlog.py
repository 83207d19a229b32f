"""Reads how full the broker is: waiting messages, taken messages and memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import msgspec
from redis.exceptions import RedisError

from fanout.broker.inspection import UNACKED, UNACKED_INDEX
from fanout.core.errors import BrokerError
from fanout.core.queue_names import BEHIND, BRANCHES_QUEUE, QUEUES
from fanout.stores.redis.base import seconds
from fanout.stores.retrying import is_transient

if TYPE_CHECKING:
    import redis

__all__ = ["Queue", "ServerMemory", "TakenMessages", "read_backlog", "read_memory"]


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """One queue.

    Attributes:
        name: Its name.
        waiting: Messages that no worker has taken.
        oldest_s: Seconds since the next message was published; None if none waits.
    """

    name: str
    waiting: int
    oldest_s: float | None = None


class TakenMessages(msgspec.Struct, frozen=True, kw_only=True):
    """The messages that workers have taken and not settled.

    Attributes:
        taken: How many.
        oldest_s: Seconds since the longest unrenewed lease was renewed. A live worker renews its
            leases several times per visibility timeout. None if no message is taken.
    """

    taken: int
    oldest_s: float | None = None


class ServerMemory(msgspec.Struct, frozen=True, kw_only=True):
    """The server's memory.

    Attributes:
        used_bytes: Bytes in use.
        limit_bytes: Its ``maxmemory``, or None if it has none.
    """

    used_bytes: int
    limit_bytes: int | None = None


class _Headers(msgspec.Struct):
    sent_at: float | None = None


class _Message(msgspec.Struct):
    headers: _Headers


_message = msgspec.json.Decoder(_Message).decode


def read_backlog(client: redis.Redis) -> tuple[tuple[Queue, ...], TakenMessages]:
    """Return the queues, control first, and the messages taken from them. Raises BrokerError."""
    try:
        with client.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.hlen(UNACKED)
            pipe.zrange(UNACKED_INDEX, 0, 0, withscores=True)
            pipe.llen(BEHIND)
            for name in QUEUES:
                pipe.llen(name)
                # Kombu pushes on the left, and takes on the right.
                pipe.lindex(name, -1)
            time, taken, oldest, behind, *ends = pipe.execute()
    except RedisError as error:
        message = f"the broker's queues cannot be read: {error}"
        raise BrokerError(message, is_passing=is_transient(error)) from error
    now = seconds(time)
    more = {BRANCHES_QUEUE: behind}
    numbered = zip(QUEUES, ends[::2], ends[1::2], strict=True)
    queues = (
        Queue(name=name, waiting=waiting + more.get(name, 0), oldest_s=_age(now, raw))
        for name, waiting, raw in numbered
    )
    oldest_s = max(0.0, now - oldest[0][1]) if oldest else None
    return tuple(queues), TakenMessages(taken=taken, oldest_s=oldest_s)


def read_memory(client: redis.Redis) -> ServerMemory | None:
    """Return the server's memory; None if the user may not read it."""
    try:
        info = cast("dict[str, int]", client.info("memory"))
    except RedisError:
        return None
    return ServerMemory(used_bytes=info["used_memory"], limit_bytes=info["maxmemory"] or None)


def _age(now: float, raw: bytes | None) -> float | None:
    sent_at = None if raw is None else _message(raw).headers.sent_at
    return None if sent_at is None else max(0.0, now - sent_at)
