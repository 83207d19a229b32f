"""Computes the start time of retried tasks by the server's clock, as machines' clocks differ.

In Celery one worker writes that time by its own clock, and another waits for it by its own clock.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from fanout.broker.transport import LimitedAMQP
from fanout.core.errors import BrokerError

if TYPE_CHECKING:
    from workers.context.app import WorkerApp

__all__ = ["ServerClockAMQP", "clock_lead"]


def clock_lead(app: WorkerApp) -> timedelta:
    """Return how far this machine's clock is ahead; zero if the server is unreachable."""
    try:
        return timedelta(seconds=time.time() - app.context.connections.fail_fast_store.now())
    except BrokerError:
        return timedelta()


class ServerClockAMQP(LimitedAMQP):
    """Celery's view of the broker, with start times by the server's clock."""

    def as_task_v2(
        self,
        task_id: str,
        name: str,
        args: Any = None,
        kwargs: Any = None,
        countdown: float | None = None,
        eta: Any = None,
        *rest: Any,
        **options: Any,
    ) -> Any:
        """Return a task's message; a countdown becomes a start time by the server's clock."""
        if countdown:
            eta = datetime.now(UTC) - clock_lead(self.app) + timedelta(seconds=countdown)
        return super().as_task_v2(task_id, name, args, kwargs, None, eta, *rest, **options)
