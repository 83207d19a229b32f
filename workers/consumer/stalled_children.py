"""A prefork child whose branch stands still ends itself: its parent, which has the lease, sees it.

Celery sends the branch again then, as after any other death of a child; it is a begin that counts.
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
from workers.context.progress import StallWatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from workers.context.app import WorkerApp
    from workers.context.worker_context import WorkerContext

__all__ = ["ChildWatch", "watch_children"]

_LOOKS = 6

_log = logging.getLogger(__name__)


class ChildWatch:
    """Looks whether the branch of a child moves.

    Args:
        context: Returns the child's context, or None if it has none yet.
        end: Ends the child.
    """

    def __init__(
        self, context: Callable[[], WorkerContext | None], end: Callable[[], object]
    ) -> None:
        self._context = context
        self._end = end
        self._watch: StallWatch | None = None

    def look(self) -> None:
        """End the child where its branch stands still although the server takes writes."""
        context = self._context()
        if context is None:
            return
        progress = context.branches.progress
        watch = self._watch = self._watch or StallWatch(progress)
        if progress.overdue():
            # Its parent beats, and would not notice; so it is asked for here, when it matters.
            try:
                store = context.connections.fail_fast_store
                store.take_lock(f"child-{os.getpid()}", context.holder, ttl_s=1)
            except BrokerError:
                watch.forgive()
                return
        for standing in watch.look():
            _log.critical(
                "no progress for %.0f s: the branch %s, and its process ends",
                standing.stands_s(progress.clock()),
                standing.doing,
                extra=about(standing.branch_id),
            )
            self._end()
        context.branches.releases.again()
        context.loop.call_soon(progress.turns)


def watch_children(app: WorkerApp) -> None:
    """Have each prefork child of a worker watch itself."""
    parent = os.getpid()

    def on_child(**_: Any) -> None:
        # Celery says the same of the one process of its solo pool.
        if os.getpid() != parent:
            watch = ChildWatch(
                lambda: app.made_context, lambda: os.kill(os.getpid(), signal.SIGKILL)
            )
            every_s = app.settings.visibility_timeout_s / _LOOKS
            Ticker("progress", every_s, watch.look).start()

    signals.worker_process_init.connect(on_child, weak=False)
