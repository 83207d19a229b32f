"""Computes the start time of retried tasks by the server's clock, as machines' clocks differ.

In Celery one worker writes that time by its own clock, and another waits for it by its own clock.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from celery.exceptions import InvalidTaskError
from celery.worker.request import Request

from fanout.broker.transport import LimitedAMQP
from fanout.core.errors import BrokerError
from workers.consumer.envelope import LONGEST_WAIT_S

if TYPE_CHECKING:
    from workers.context.app import WorkerApp

__all__ = ["ServerClockAMQP", "ServerClockRequest"]


def _clock_lead(app: WorkerApp) -> timedelta:
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
            eta = datetime.now(UTC) - _clock_lead(self.app) + timedelta(seconds=countdown)
        return super().as_task_v2(task_id, name, args, kwargs, None, eta, *rest, **options)


class ServerClockRequest(Request):  # type: ignore[misc]
    """A task that a worker has received; its start time, if any, is by the server's clock."""

    def __init__(self, *args: Any, app: WorkerApp, **options: Any) -> None:
        super().__init__(*args, app=app, **options)
        if self._eta is not None:
            self._eta += _clock_lead(app)
            if self._eta - datetime.now(UTC) > timedelta(seconds=LONGEST_WAIT_S):
                # No task of fanout waits for so long, and the worker would hold it until then.
                raise InvalidTaskError("begins too late")
