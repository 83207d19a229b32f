"""Leases: what a worker has taken stays its own for as long as it lives, and no longer.

Kombu puts a message back into its queue ``visibility_timeout`` seconds after it was taken. Here a
worker renews that time again and again for all messages that it holds, so the timeout can be short
although calls are long: a dead worker's messages come back soon, a slow one's never do.

A message may come back all the same, when the server was away or the connection was lost. So a
worker also says that it is alive, as the holder of the branches that it has begun: nobody else
begins these (fanout.stores.RedisStore.begin). Of a branch that stands still
(workers.context.progress) neither holds any more.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery import bootsteps
from celery.worker import state
from redis.exceptions import RedisError

from fanout.broker.app import BRANCH, connect_broker
from fanout.broker.inspection import UNACKED_INDEX
from fanout.broker.message_leases import renew
from fanout.core.errors import BrokerError
from fanout.system.logs import about
from fanout.system.ticker import Ticker
from workers.context.app import app_of, context_of
from workers.context.heartbeats import BEATS, RENEWALS
from workers.context.progress import BranchTracker, StallWatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery.worker import WorkController

__all__ = ["Leases", "held_tags"]

_PAGE = 1_000

_log = logging.getLogger(__name__)


class Leases(bootsteps.StartStopStep):  # type: ignore[misc]
    """Renews the leases of a worker's messages until its last task has ended."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: WorkController, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._worker = worker
        settings = app_of(worker).settings
        self._redis = connect_broker(settings)
        self._watched: StallWatch | None = None
        self._every_s = settings.visibility_timeout_s / RENEWALS
        self._ticker = Ticker("leases", self._every_s, self._renew)

    def start(self, worker: WorkController) -> None:
        """Begin to renew, until the process ends: not just until the consumer does."""
        context_of(worker).on_close(self._close)
        self._ticker.start()

    def _close(self) -> None:
        self._ticker.stop()
        self._redis.close()

    @property
    def _progress(self) -> BranchTracker:
        progress: BranchTracker = context_of(self._worker).branches.progress
        return progress

    def _watch(self) -> StallWatch:
        if self._watched is None:
            self._watched = StallWatch(self._progress)
        return self._watched

    def _left(self) -> Callable[[Any], bool]:
        """Return what says of a request whether it is left to other workers."""
        if self._progress.is_loop_still:
            # Also what has arrived since, and is nowhere yet.
            return lambda request: request.name == BRANCH
        stuck = {each.branch_id.task_id for each in self._progress.stuck()}
        return lambda request: request.id in stuck

    def _leave_what_stands_still(self) -> None:
        context = context_of(self._worker)
        now = self._progress.clock()
        for standing in self._watch().look():
            _log.error(
                "no progress for %.0f s: the branch %s, and is left to other workers",
                standing.stands_s(now),
                standing.doing,
                extra=about(standing.branch_id),
            )
            try:
                context.branches.let_go(standing)
            except BrokerError as error:
                # As long as its claim stands, nobody else begins it: it is left at a later look.
                standing.is_stuck = False
                _log.warning("its claim is not given up yet: %s", error)

    def _beat(self) -> None:
        context = context_of(self._worker)
        context.connections.fail_fast_store.beat(context.holder, ttl_s=BEATS * self._every_s)

    def _renew(self) -> None:
        try:
            self._beat()
        except BrokerError:
            self._watch().forgive()
            raise
        self._leave_what_stands_still()
        context = context_of(self._worker)
        context.branches.releases.again()
        context.loop.call_soon(self._progress.turns)
        tags = held_tags(self._worker, without=self._left())
        try:
            for start in range(0, len(tags), _PAGE):
                renew(self._redis, UNACKED_INDEX, tags[start : start + _PAGE])
        except (RedisError, OSError) as error:
            raise BrokerError(f"leases cannot be renewed: {error}") from error


def held_tags(worker: WorkController, *, without: Callable[[Any], bool] | None = None) -> list[str]:
    """Return the delivery tags of the messages that a worker has taken and not yet settled.

    Those of requests of which ``without`` says so are left out: their leases are to end.

    By request, because what was taken before a connection was lost is still held; and by channel,
    because what waits for a retry's countdown is no request yet.
    """
    consumer = getattr(worker.consumer, "task_consumer", None)
    while True:
        try:
            requests = {*state.reserved_requests, *state.active_requests}
            tags = {r.message.delivery_tag for r in requests if not r.acknowledged}
            left = {r.message.delivery_tag for r in requests if without and without(r)}
            if consumer is not None and consumer.channel is not None:
                qos = consumer.channel.qos
                # What kombu calls dirty is settled, and forgotten with the next that is taken.
                tags |= set(qos._delivered) - set(qos._dirty)  # noqa: SLF001 - nothing else tells
        except RuntimeError:
            # A message came or went meanwhile.
            continue
        return sorted(tags - left)
