"""Leases: what a worker has taken stays its own for as long as it lives, and no longer.

Kombu puts a message back into its queue ``visibility_timeout`` seconds after it was taken. Here a
worker renews that time again and again for all messages that it holds, so the timeout can be short
although calls are long: a dead worker's messages come back soon, a slow one's never do.

A message may come back all the same, when the server was away or the connection was lost. So a
worker also says that it is alive, as the holder of the branches that it has begun: nobody else
begins these (fanout.stores.Store.begin).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import bootsteps
from celery.worker import state
from redis.exceptions import RedisError

from fanout.broker import connect_broker
from fanout.errors import BrokerError
from fanout.messages import UNACKED_INDEX
from fanout.qos import renew
from workers.ticker import Ticker

if TYPE_CHECKING:
    from celery.worker import WorkController

__all__ = ["SURE", "Leases", "held_tags"]

# A holder is silent for half the visibility timeout when it is taken for dead, so before its
# messages come back; two of three beats may fail until then.
_RENEWALS = 6
_BEATS = 3
# So much of that timeout after a holder was alive it still is, whenever its last beat was.
SURE = (_BEATS - 1) / _RENEWALS
_PAGE = 1_000


class Leases(bootsteps.StartStopStep):  # type: ignore[misc]
    """Renews the leases of a worker's messages until its last task has ended."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: WorkController, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._worker = worker
        settings = worker.app.fanout_settings
        self._redis = connect_broker(settings)
        self._every_s = settings.visibility_timeout_s / _RENEWALS
        self._ticker = Ticker("leases", self._every_s, self._renew)

    def start(self, worker: WorkController) -> None:
        """Begin to renew, until the process ends: not just until the consumer does."""
        worker.app.fanout_runtime().on_close(self._close)
        self._ticker.start()

    def _close(self) -> None:
        self._ticker.stop()
        self._redis.close()

    def _beat(self) -> None:
        runtime = self._worker.app.fanout_runtime()
        runtime.watched.beat(runtime.holder, ttl_s=_BEATS * self._every_s)

    def _renew(self) -> None:
        self._beat()
        tags = held_tags(self._worker)
        try:
            for start in range(0, len(tags), _PAGE):
                renew(self._redis, UNACKED_INDEX, tags[start : start + _PAGE])
        except RedisError as error:
            raise BrokerError(f"leases cannot be renewed: {error}") from error


def held_tags(worker: WorkController) -> list[str]:
    """Return the delivery tags of the messages that a worker has taken and not yet settled.

    By request, because what was taken before a connection was lost is still held; and by channel,
    because what waits for a retry's countdown is no request yet.
    """
    consumer = getattr(worker.consumer, "task_consumer", None)
    while True:
        try:
            requests = {*state.reserved_requests, *state.active_requests}
            tags = {r.message.delivery_tag for r in requests if not r.acknowledged}
            if consumer is not None and consumer.channel is not None:
                qos = consumer.channel.qos
                # What kombu calls dirty is settled, and forgotten with the next that is taken.
                tags |= set(qos._delivered) - set(qos._dirty)  # noqa: SLF001 - nothing else tells
        except RuntimeError:
            # A message came or went meanwhile.
            continue
        return sorted(tags)
