"""Leases by the server's clock: those of machines differ.

Kombu writes down when a message was taken by the clock of the worker that takes it, and looks for
what has lapsed by the clock of the worker that looks. Where these differ by more than the
visibility timeout, a living worker's messages are put back at once, and a dead one's as much too
late. So here, whoever takes a message, renews its lease or looks for lapsed ones does it by the
one clock that all share.
"""

from __future__ import annotations

import json
import secrets
import time
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING, Any, cast

from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from kombu.utils.json import dumps

from fanout.broker.rejected import MALFORMED, refusals
from fanout.core.queue_names import BEHIND, BRANCHES_QUEUE, TURNS_OF_A_RUN
from fanout.stores.redis.base import seconds
from fanout.stores.redis.scripts import RENEW
from fanout.stores.redis.turn_scripts import TAKE

if TYPE_CHECKING:
    import redis
    from kombu.message import Message
    from redis.commands.core import Script

__all__ = ["ServerClockQoS", "renew"]


# So many times as many must be left for others as are taken ahead.
_PLENTY = 2
# Once this part of what is taken ahead has found its slots, it is worth while to ask for more.
_WORTH_ASKING = 4
# How old what is known of them may be, while none is taken.
_LOOK_S = 0.2


class ServerClockQoS(kombu_redis.QoS):  # type: ignore[misc]
    """What a channel has taken and not settled, with the server's time of taking.

    Attributes:
        ahead: How many of the messages for which there is room are taken before there is a slot
            for them. Only as long as there are plenty: the last ones are for whoever is free.
        is_barred: Whether none are taken for now, whatever room there is.
    """

    ahead = 0
    is_barred = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Tags of its own: a message that was published twice may be taken twice at a time.
        self._prefix = secrets.token_hex(8)
        self._numbers = count()
        self._kept: set[str] = set()
        # How many messages the last one that was taken has left in its queue.
        self._left = 0
        self._looked_at = 0.0

    def can_consume_max_estimate(self) -> int | None:
        """Return how many more may be taken; None is any number."""
        if self.is_barred:
            return 0
        room: int | None = super().can_consume_max_estimate()
        if room is None or not self.ahead:
            return room
        slots = max(0, room - self.ahead)
        if slots:
            return room if self._has_plenty() else slots
        # All slots are taken. There is no hurry: a few are not worth a round trip.
        if room <= self.ahead // _WORTH_ASKING:
            return 0
        if time.monotonic() - self._looked_at > _LOOK_S:
            self._look()
        return room if self._has_plenty() else 0

    def can_consume(self) -> bool:
        """Say whether one more may be taken."""
        return self.can_consume_max_estimate() != 0

    def _has_plenty(self) -> bool:
        return self._left > _PLENTY * self.ahead

    def _look(self) -> None:
        """See how many there are: there may be more since no slot was free to take one."""
        with self.channel.conn_or_acquire() as client, client.pipeline(transaction=False) as pipe:
            self._left = sum(pipe.llen(BRANCHES_QUEUE).llen(BEHIND).execute())
        self._looked_at = time.monotonic()

    def take(self, queue: str, message: bytes, *, more: int) -> list[tuple[str, bytes]]:
        """Keep a message that was taken, and take up to so many more of its queue at once.

        Of the branches those of each run in turn, however many it has published.

        Returns:
            The messages with their tags, that one first.
        """
        tags = [f"{self._prefix}.{next(self._numbers)}" for _ in range(1 + more)]
        keys = [self.unacked_index_key, self.unacked_key, queue]
        with self.channel.conn_or_acquire() as client:
            args: list[Any] = [_following(queue), _turns(queue), message, *tags]
            left, taken = self._take(keys=keys, args=args, client=client)
        if queue == BRANCHES_QUEUE:
            self._left, self._looked_at = left, time.monotonic()
        messages = list(zip(tags, [message, *taken], strict=False))
        self._kept.update(tag for tag, _ in messages)
        return messages

    @cached_property
    def _take(self) -> Script:
        with self.channel.conn_or_acquire() as client:
            return cast("Script", client.register_script(TAKE))

    def append(self, message: Message, delivery_tag: str) -> None:
        """Remember a message that ``take`` has kept."""
        if delivery_tag not in self._kept:
            # It came by another way than its queue.
            self._keep(message, delivery_tag)
        self._kept.discard(delivery_tag)
        # Past kombu's own, which would keep it again.
        virtual.QoS.append(self, message, delivery_tag)

    def _keep(self, message: Message, tag: str) -> None:
        queue = message.delivery_info["routing_key"]
        keys = [self.unacked_index_key, self.unacked_key, queue]
        raw = dumps(message._raw)  # noqa: SLF001 - as kombu does
        with self.channel.conn_or_acquire() as client:
            # Nothing of its run has left the queue: nobody's turn follows.
            self._take(keys=keys, args=[_following(queue), 0, raw, tag], client=client)

    def drop(self, tag: str) -> None:
        """Forget what was taken and turned out to be no message."""
        self._kept.discard(tag)
        self._remove_from_indices(tag).execute()

    def restore_by_tag(self, tag: str | bytes, client: Any = None, leftmost: bool = False) -> None:  # noqa: FBT001, FBT002 - kombu's
        """Put a message back; or drop what is none, which would keep all others from it."""
        try:
            super().restore_by_tag(tag, client, leftmost)
        except MALFORMED as error:
            refusals.add("cannot be decoded", type(error).__name__)
            self.drop(tag.decode() if isinstance(tag, bytes) else tag)

    @property
    def visibility_timeout(self) -> float:
        """Seconds until a lease lapses, as seen from this machine's clock.

        Kombu asks each time that it looks, and subtracts it from this machine's time.
        """
        with self.channel.conn_or_acquire() as client:
            ahead_s = time.time() - seconds(client.time())
        return cast("float", self.channel.visibility_timeout) + ahead_s


def _following(queue: str) -> str:
    """Return what follows a message where kombu keeps it: its exchange and its routing key.

    The queue that it was in, whatever the message says of itself.
    """
    return f',"",{json.dumps(queue)}]'


def _turns(queue: str) -> int:
    return TURNS_OF_A_RUN if queue == BRANCHES_QUEUE else 0


def renew(client: redis.Redis, index: str, tags: list[str]) -> None:
    """Have the leases of those messages that are still taken begin now."""
    client.register_script(RENEW)(keys=[index], args=tags)
