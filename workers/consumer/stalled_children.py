"""Ends a prefork child whose branch is stuck: its parent, which holds the lease, notices.

Celery then redelivers the branch, as after any other death of a child. The begin counts towards
``max_deliveries``.
"""

from __future__ import annotations

import logging
import os
import signal
from typing import TYPE_CHECKING, Any

from celery import signals

from fanout.core.errors import BrokerError
from fanout.system.logs import about
from fanout.system.ticker import Ticker

if TYPE_CHECKING:
    from collections.abc import Callable

    from workers.context.app import WorkerApp
    from workers.context.worker_context import WorkerContext

__all__ = ["end_if_stuck", "watch_children"]

_CHECKS_PER_TIMEOUT = 6

_log = logging.getLogger(__name__)


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
            every_s = app.settings.visibility_timeout_s / _CHECKS_PER_TIMEOUT
            Ticker("progress", every_s, check).start()

    signals.worker_process_init.connect(on_child, weak=False)
