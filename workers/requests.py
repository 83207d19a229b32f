"""What a worker says of its tasks to whoever watches: Flower and other monitors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.exceptions import Ignore, Reject

from workers.branches import BranchFailed
from workers.clock import ServerClockRequest

if TYPE_CHECKING:
    from billiard.einfo import ExceptionInfo

__all__ = ["PostponedError", "ReportsAll"]


class PostponedError(Ignore):  # type: ignore[misc]
    """This message has done its work; the task itself is published again later."""


class ReportsAll(ServerClockRequest):
    """A request of which a monitor hears how it ended, whatever way that was.

    Celery says nothing of a task that is ignored or goes back to its queue: it would be shown as
    started until it is processed again, if ever. ``RETRY`` is what comes closest.
    """

    def on_failure(
        self,
        exc_info: ExceptionInfo,
        send_failed_event: bool = True,  # noqa: FBT001, FBT002 - Celery's
        return_ok: bool = False,  # noqa: FBT001, FBT002 - Celery's
    ) -> Any:
        """Settle a task that raised."""
        error = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(error, BranchFailed):
            # An ordinary end, and the same in all of them: it would only fill a monitor's memory.
            exc_info.traceback = f"{type(error).__name__}: {error}"
        result = super().on_failure(exc_info, send_failed_event, return_ok)
        if isinstance(error, PostponedError) or (isinstance(error, Reject) and error.requeue):
            self.send_event("task-retried", exception=f"{type(error).__name__}({error})")
        return result
