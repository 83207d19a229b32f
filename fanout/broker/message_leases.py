"""Leases that go by the server's clock, as the clocks of machines differ.

Kombu records the time of a lease by the clock of the worker that takes the message, and finds
lapsed leases by the clock of the worker that looks. If these clocks differ by more than the
visibility timeout, kombu restores a live worker's messages at once, and a dead worker's too late.
Here every worker takes, renews and checks leases by the server's clock.
"""

from __future__ import annotations

import json
import secrets
import time
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING, Any, cast

import redis
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from kombu.utils.json import dumps

from fanout.broker.dropped import MALFORMED, dropped_messages
from fanout.core.queue_names import (
    BEHIND,
    BRANCHES_QUEUE,
    TURNS_OF_A_RUN,
    UNACKED,
    UNACKED_INDEX,
)
from fanout.stores.redis.base import seconds
from fanout.stores.redis.turn_scripts import RENEW, RETURNED, SETTLE, TAKE
from fanout.stores.retrying import is_recoverable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kombu.message import Message
    from redis.commands.core import Script

__all__ = ["ServerClockQoS", "is_counted", "renew", "settle"]

# Before the run, at the end of a tag.
_OF = "@"


# Prefetch only if the backlog is more than this multiple of the prefetch.
_PLENTY = 2
# Ask for more once calls have used this fraction of the prefetch.
_WORTH_ASKING = 4
# Seconds that the known length of the backlog stays valid while no message is taken.
_LOOK_S = 0.2


class ServerClockQoS(kombu_redis.QoS):  # type: ignore[misc]
    """The messages that a channel has taken and not settled, with leases by the server's clock.

    Attributes:
        ahead: The prefetch: messages to take before there is a place for them. Only while the
            backlog is long: the last messages are for workers with a free place.
        is_barred: Whether to take no messages for now, even if there is room.
        waiting: Returns how many taken branches wait for a permit of their run: these leave room
            for messages of other runs.
    """

    ahead = 0
    is_barred = False
    waiting: Callable[[], int] = staticmethod(int)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Own tags, as one channel may hold two copies of a message that was published twice.
        self._prefix = secrets.token_hex(8)
        self._numbers = count()
        self._kept: set[str] = set()
        # Whether it has looked for lapsed messages before.
        self._has_looked = False
        # The messages left in the queue after the last one was taken.
        self._left = 0
        self._looked_at = 0.0

    def can_consume_max_estimate(self) -> int | None:
        """Return how many more messages may be taken; None means any number."""
        if self.is_barred:
            return 0
        room = self._room()
        if room is None or not self.ahead:
            return room
        places = max(0, room - self.ahead)
        if places:
            return room if self._has_plenty() else places
        # All places are busy: a few messages are not worth a round trip.
        if room <= self.ahead // _WORTH_ASKING:
            return 0
        if time.monotonic() - self._looked_at > _LOOK_S:
            self._look()
        return room if self._has_plenty() else 0

    def _room(self) -> int | None:
        """Return the prefetch count minus the messages that are taken and can be processed."""
        if not self.prefetch_count:
            return None
        taken = len(self._delivered) - len(self._dirty) - self.waiting()
        return cast("int", max(self.prefetch_count - max(0, taken), 0))

    def can_consume(self) -> bool:
        """Return whether one more message may be taken."""
        return self.can_consume_max_estimate() != 0

    def _has_plenty(self) -> bool:
        return self._left > _PLENTY * self.ahead

    def _look(self) -> None:
        """Read the length of the backlog: it may have grown while no place was free."""
        with self.channel.conn_or_acquire() as client, client.pipeline(transaction=False) as pipe:
            self._left = sum(pipe.llen(BRANCHES_QUEUE).llen(BEHIND).execute())
        self._looked_at = time.monotonic()

    def take(self, queue: str, message: bytes, *, more: int) -> list[tuple[str, bytes]]:
        """Lease a message that was taken, and take up to ``more`` further ones of its queue.

        Takes branches of each run in turn, however many the run has published.

        Returns:
            The messages with their tags, that one first.
        """
        tags = [f"{self._prefix}.{next(self._numbers)}" for _ in range(1 + more)]
        keys = [self.unacked_index_key, self.unacked_key, queue]
        with self.channel.conn_or_acquire() as client:
            args: list[Any] = [_following(queue), _turns(queue), message, *tags]
            left, taken, *own_tags = self._take(keys=keys, args=args, client=client)
        if queue == BRANCHES_QUEUE:
            self._left, self._looked_at = left, time.monotonic()
        if own_tags and own_tags[0]:
            tags = [tag.decode() for tag in own_tags[0]]
        messages = list(zip(tags, [message, *taken], strict=False))
        self._kept.update(tag for tag, _ in messages)
        return messages

    @cached_property
    def _take(self) -> Script:
        with self.channel.conn_or_acquire() as client:
            return cast("Script", client.register_script(TAKE))

    def append(self, message: Message, delivery_tag: str) -> None:
        """Register a message that ``take`` has leased."""
        if delivery_tag not in self._kept:
            # It did not come through ``take``.
            self._keep(message, delivery_tag)
        self._kept.discard(delivery_tag)
        # Skips kombu's own method, which would lease it again.
        virtual.QoS.append(self, message, delivery_tag)

    def _keep(self, message: Message, tag: str) -> None:
        queue = message.delivery_info["routing_key"]
        keys = [self.unacked_index_key, self.unacked_key, queue]
        raw = dumps(message._raw)  # noqa: SLF001 - as kombu does
        with self.channel.conn_or_acquire() as client:
            # No message of its run has left the queue, so no turn follows.
            self._take(keys=keys, args=[_following(queue), 0, raw, tag], client=client)

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message, and give its run the next turn if that waits for it."""
        if not is_counted(delivery_tag):
            super().ack(delivery_tag)
            return
        with self.channel.conn_or_acquire() as client:
            settle(client, [delivery_tag])
        # Skips kombu's own method, which would remove it again.
        virtual.QoS.ack(self, delivery_tag)

    def drop(self, tag: str) -> None:
        """Remove a taken item that is no message."""
        self._kept.discard(tag)
        with self.channel.conn_or_acquire() as client:
            settle(client, [tag])

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Restore lapsed messages; leave it to the next time where the server refuses that for now.

        Kombu does the same where a connection is broken. Else its timer logs a traceback each second.
        The first time is raised, as it is a part of connecting.
        """
        is_first, self._has_looked = not self._has_looked, True
        try:
            super().restore_visible(*args, **kwargs)
        except redis.ResponseError as error:
            if is_first or not is_recoverable(error):
                raise

    def restore_by_tag(self, tag: str | bytes, client: Any = None, leftmost: bool = False) -> None:  # noqa: FBT001, FBT002 - kombu's
        """Restore a message; drop an item that is none, as it would block all later restores."""
        name = tag.decode() if isinstance(tag, bytes) else tag
        try:
            with self.channel.conn_or_acquire(client) as server:
                was_taken = is_counted(name) and server.hexists(self.unacked_key, name)
                super().restore_by_tag(tag, server, leftmost)
                if was_taken:
                    run_id = name.rpartition(_OF)[2]
                    server.register_script(RETURNED)(keys=[BRANCHES_QUEUE], args=[run_id])
        except MALFORMED as error:
            dropped_messages.add("cannot be decoded", type(error).__name__)
            self.drop(name)

    @property
    def visibility_timeout(self) -> float:
        """Seconds until a lease lapses, as seen from this machine's clock.

        Kombu asks each time that it looks, and subtracts it from this machine's time.
        """
        with self.channel.conn_or_acquire() as client:
            ahead_s = time.time() - seconds(client.time())
        return cast("float", self.channel.visibility_timeout) + ahead_s


def _following(queue: str) -> str:
    """Return the exchange and routing key that kombu stores after a message.

    The routing key is the message's actual queue, not the one that the message names.
    """
    return f',"",{json.dumps(queue)}]'


def _turns(queue: str) -> int:
    return TURNS_OF_A_RUN if queue == BRANCHES_QUEUE else 0


def is_counted(tag: str) -> bool:
    """Return whether a message's run has a limit, so that the server counts what is taken of it."""
    return _OF in tag


def settle(client: redis.Redis, tags: Sequence[str]) -> None:
    """Remove messages that were taken; give turns to their runs where these wait for it."""
    if any(map(is_counted, tags)):
        keys = [UNACKED_INDEX, UNACKED, BRANCHES_QUEUE]
        client.register_script(SETTLE)(keys=keys, args=[TURNS_OF_A_RUN, *tags])
        return
    with client.pipeline(transaction=False) as pipe:
        pipe.zrem(UNACKED_INDEX, *tags)
        pipe.hdel(UNACKED, *tags)
        pipe.execute()


def renew(client: redis.Redis, index: str, tags: list[str]) -> None:
    """Renew the leases of those messages that are still taken."""
    client.register_script(RENEW)(keys=[index], args=tags)
