"""Leases by the server's clock: those of machines differ.

Kombu writes down when a message was taken by the clock of the worker that takes it, and looks for
what has lapsed by the clock of the worker that looks. Where these differ by more than the
visibility timeout, a living worker's messages are put back at once, and a dead one's as much too
late. So here, whoever takes a message, renews its lease or looks for lapsed ones does it by the
one clock that all share.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, cast

from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from kombu.utils.json import dumps

from fanout.stores.redis.base import seconds
from fanout.stores.redis.scripts import RENEW, TAKE

if TYPE_CHECKING:
    import redis
    from kombu.message import Message

__all__ = ["ServerClockQoS", "renew"]


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
