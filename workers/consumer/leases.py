"""Renews the leases of a worker's messages while the worker is alive.

Kombu puts a message back into its queue ``visibility_timeout`` seconds after a worker took it. A
worker renews this time for all messages that it holds, so the timeout can be short although calls
are long: the messages of a dead worker come back soon, those of a slow worker never do.

A message may still come back after the server was unreachable or the connection was lost. So a
worker also sends a heartbeat as the holder of the branches that it has begun: no other worker
begins these (fanout.stores.RedisStore.begin_all). A stuck branch (workers.context.progress) keeps
neither its lease nor its claim. A stuck prefork child, whose parent holds the lease, ends itself: Celery
then redelivers the branch, as after any other death of a child, and the begin counts.
"""

from __future__ import annotations

import logging
import os
import signal
from typing import TYPE_CHECKING, Any

from celery import bootsteps, signals
from celery.worker import state
from redis.exceptions import RedisError

from fanout.broker.app import BRANCH, connect_broker
from fanout.broker.inspection import UNACKED_INDEX
from fanout.broker.message_leases import renew
from fanout.core.errors import BrokerError
from fanout.system.logs import about
from fanout.system.threads import copied
from fanout.system.ticker import Ticker
from workers.context.app import app_of, context_of
from workers.context.progress import BEATS, RENEWALS, BranchTracker

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery.worker import WorkController

    from workers.context.app import WorkerApp
    from workers.context.worker_context import WorkerContext

__all__ = ["LeaseRenewal", "end_if_stuck", "held_tags", "watch_children"]

_PAGE = 1_000
_CHILD_CHECKS_PER_TIMEOUT = 6

_log = logging.getLogger(__name__)


class LeaseRenewal(bootsteps.StartStopStep):  # type: ignore[misc]
    """Renews the leases of a worker's messages until its last task has ended."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: WorkController, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._worker = worker
        settings = app_of(worker).settings
        self._redis = connect_broker(settings)
        self._every_s = settings.visibility_timeout_s / RENEWALS
        self._ticker = Ticker("leases", self._every_s, self._renew)

    def start(self, worker: WorkController) -> None:
        """Start to renew leases, until the process ends: not only until the consumer stops."""
        context_of(worker).on_close(self._close)
        self._ticker.start()

    def _close(self) -> None:
        self._ticker.stop()
        self._redis.close()

    @property
    def _progress(self) -> BranchTracker:
        progress: BranchTracker = context_of(self._worker).branches.progress
        return progress

    def _is_left_to_others(self) -> Callable[[Any], bool]:
        """Return a predicate: whether a request is left to other workers."""
        if self._progress.is_loop_still:
            # Includes requests that have arrived since and are not in progress yet.
            return lambda request: request.name == BRANCH
        stuck = {each.branch_id.task_id for each in self._progress.stuck()}
        return lambda request: request.id in stuck

    def _abandon_stuck_branches(self) -> None:
        context = context_of(self._worker)
        now = self._progress.clock()
        for branch in self._progress.newly_stuck():
            _log.error(
                "no progress for %.0f s: the branch %s, and is left to other workers",
                branch.stands_s(now),
                branch.doing,
                extra=about(branch.branch_id),
            )
            try:
                context.branches.release_stuck(branch)
            except BrokerError as error:
                # While the claim stands, no other worker begins the branch: try again at the next check.
                branch.is_stuck = False
                _log.warning("its claim is not given up yet: %s", error)

    def _renew(self) -> None:
        context = context_of(self._worker)
        try:
            context.connections.fail_fast_store.beat(context.holder, ttl_s=BEATS * self._every_s)
        except BrokerError:
            self._progress.forgive()
            raise
        self._abandon_stuck_branches()
        context.branches.releases.again()
        context.loop.call_soon(self._progress.turns)
        tags = held_tags(self._worker, without=self._is_left_to_others())
        try:
            for start in range(0, len(tags), _PAGE):
                renew(self._redis, UNACKED_INDEX, tags[start : start + _PAGE])
        except (RedisError, OSError) as error:
            raise BrokerError(f"leases cannot be renewed: {error}") from error


def held_tags(worker: WorkController, *, without: Callable[[Any], bool] | None = None) -> list[str]:
    """Return the delivery tags of the messages that a worker has taken and not yet settled.

    Leaves out the requests for which ``without`` returns true: their leases must end.

    Looks at requests, because the worker still holds messages that it took before it lost a
    connection; and at the channel, because a message that waits for its countdown is no request yet.
    """
    requests = {*copied(state.reserved_requests), *copied(state.active_requests)}
    tags = {r.message.delivery_tag for r in requests if not r.acknowledged}
    left = {r.message.delivery_tag for r in requests if without and without(r)}
    consumer = getattr(worker.consumer, "task_consumer", None)
    if consumer is not None and consumer.channel is not None:
        qos = consumer.channel.qos
        # Dirty tags are settled; kombu removes them when it takes the next message.
        tags |= set(copied(qos._delivered)) - set(copied(qos._dirty))  # noqa: SLF001 - no public API
    return sorted(tags - left)


def end_if_stuck(context: WorkerContext, end: Callable[[], object]) -> None:
    """End the calling child, by ``end``, if its branch is stuck although the server accepts writes."""
    progress = context.branches.progress
    if progress.overdue():
        # The parent sends the heartbeats, so only a write shows the child whether the server accepts
        # writes. It is done only if a branch is overdue.
        try:
            store = context.connections.fail_fast_store
            store.take_lock(f"child-{os.getpid()}", context.holder, ttl_s=1)
        except BrokerError:
            progress.forgive()
            return
    for branch in progress.newly_stuck():
        _log.critical(
            "no progress for %.0f s: the branch %s, and its process ends",
            branch.stands_s(progress.clock()),
            branch.doing,
            extra=about(branch.branch_id),
        )
        end()
    context.branches.releases.again()
    context.loop.call_soon(progress.turns)


def watch_children(app: WorkerApp) -> None:
    """Make each prefork child of a worker watch itself."""
    parent = os.getpid()

    def check() -> None:
        if app.made_context is not None:
            end_if_stuck(app.made_context, lambda: os.kill(os.getpid(), signal.SIGKILL))

    def on_child(**_: Any) -> None:
        # Celery sends this signal for the single process of its solo pool, too.
        if os.getpid() != parent:
            every_s = app.settings.visibility_timeout_s / _CHILD_CHECKS_PER_TIMEOUT
            Ticker("progress", every_s, check).start()

    signals.worker_process_init.connect(on_child, weak=False)
