"""When a task that is tried again begins, by the server's clock: those of machines differ.

Celery has one worker write that time, by its clock, and another one wait for it, by its own.
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


def _ahead(app: WorkerApp) -> timedelta:
    """Return by how much this machine's clock is ahead; nothing where the server is away."""
    try:
        return timedelta(seconds=time.time() - app.context.connections.fail_fast_store.now())
    except BrokerError:
        return timedelta()


class ServerClockAMQP(LimitedAMQP):
    """Celery's view of the broker, where times to begin are the server's."""

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
        """Return a task's message: what has a countdown begins at a time of the server's."""
        if countdown:
            eta = datetime.now(UTC) - _ahead(self.app) + timedelta(seconds=countdown)
        return super().as_task_v2(task_id, name, args, kwargs, None, eta, *rest, **options)


class ServerClockRequest(Request):  # type: ignore[misc]
    """A task that a worker has received; where it has a time to begin, that is the server's."""

    def __init__(self, *args: Any, app: WorkerApp, **options: Any) -> None:
        super().__init__(*args, app=app, **options)
        if self._eta is not None:
            self._eta += _ahead(app)
            if self._eta - datetime.now(UTC) > timedelta(seconds=LONGEST_WAIT_S):
                # Nothing of ours waits for so long, and it would be held until then.
                raise InvalidTaskError("begins too late")
