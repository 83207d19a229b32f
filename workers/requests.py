"""What a worker says of its tasks to whoever watches: Flower and other monitors."""

from __future__ import annotations

import logging
import time
from functools import partial
from threading import Timer
from typing import TYPE_CHECKING, Any

from celery.exceptions import Ignore, Reject
from celery.worker.state import task_ready
from kombu.transport import virtual

from workers.branches import BranchFailed
from workers.clock import ServerClockRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from billiard.einfo import ExceptionInfo

__all__ = [
    "BranchRequest",
    "PostponedError",
    "ReportsAll",
    "RunGoneError",
    "StillHeldError",
    "let_go",
]

# How soon a further try is published again that the broker has refused.
_AGAIN_S = 2.0

_log = logging.getLogger(__name__)


class PostponedError(Ignore):  # type: ignore[misc]
    """This message has done its work; the task itself is published again later."""


class RunGoneError(Ignore):  # type: ignore[misc]
    """There is no such run: the message goes, and no chord counts it."""


class StillHeldError(Ignore):  # type: ignore[misc]
    """Another worker has the branch: this message waits, in case that one dies."""


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
        if isinstance(error, StillHeldError):
            # Not acknowledged, and not renewed: it is back in its queue when its lease ends.
            task_ready(self)
            self.forget()
            return None
        result = super().on_failure(exc_info, send_failed_event, return_ok)
        if isinstance(error, RunGoneError):
            self.send_event("task-failed", exception=f"RunGoneError({error})", traceback="")
        if isinstance(error, PostponedError) or (isinstance(error, Reject) and error.requeue):
            self.send_event("task-retried", exception=f"{type(error).__name__}({error})")
        return result

    def _retry_worker_lost(self, exc: Exception, exc_info: ExceptionInfo) -> bool:
        """Publish a further try of a task whose process died; until the broker takes it.

        Celery tries once, and then counts the task as failed. The message alone would not do: the
        branch is claimed in the name of this process, which lives, and a further try passes that.
        """
        if super()._retry_worker_lost(exc, exc_info):
            return True
        # Its message is held meanwhile; where this process ends, it goes back to its queue. There
        # is no loop of Celery's while its consumer connects again.
        timer = Timer(_AGAIN_S, self._retry_worker_lost, (exc, exc_info))
        timer.daemon = True
        try:
            timer.start()
        except RuntimeError:
            # No thread can be started.
            return False
        return True

    def acknowledge(self) -> None:
        """Take the message off the broker; where that refuses, it comes again, and is done."""
        self._settle(super().acknowledge)

    def reject(self, requeue: bool = False) -> None:  # noqa: FBT001, FBT002 - Celery's
        """Put the message back, or drop it; where the broker refuses, it is back later."""
        self._settle(partial(super().reject, requeue))

    def _settle(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:  # noqa: BLE001 - a request that nobody ends is held for ever
            _log.warning("task %s comes again: %s", self.id, type(error).__name__)
            self.forget()

    def let_go(self) -> None:
        """Be done with it here without asking the server: it is back when its lease ends."""
        task_ready(self)
        if not self.acknowledged:
            self.forget()

    def forget(self) -> None:
        """Have kombu and Celery take the message for settled; the server is told by others."""
        message = self.message
        if message.channel is not None:
            virtual.QoS.ack(message.channel.qos, message.delivery_tag)
        message._state = "ACK"  # noqa: SLF001 - what Message.ack() sets
        self.acknowledged = True


class BranchRequest(ReportsAll):
    """A branch, and how it ended where that was on the worker's loop (workers.pool)."""

    @property
    def tries(self) -> int:
        """How often Celery has sent the task again."""
        return self.request_dict.get("retries") or 0

    @property
    def key(self) -> tuple[str, int, int, int]:
        """Run, stage, shard and position."""
        ids = self.kwargs
        return ids["run_id"], ids["stage"], ids["shard"], ids["position"]

    @property
    def group(self) -> str | None:
        """The id of its chord's header."""
        group: str | None = self.request_dict.get("group")
        return group

    @property
    def group_index(self) -> int | None:
        """Its place in that header."""
        index: int | None = self.request_dict.get("group_index")
        return index

    @property
    def context(self) -> Any:
        """What Celery's backends know a task by."""
        return self._context

    def on_settled(self, error: BranchFailed | None) -> None:
        """Note its end, once its chord has counted it and its message is gone."""
        task_ready(self, successful=error is None)
        runtime_s = time.time() - (self.time_start or 0.0)
        if error is None:
            self.send_event("task-succeeded", result="None", runtime=runtime_s)
        else:
            said = f"{type(error).__name__}({str(error)!r})"
            self.send_event("task-failed", exception=said, traceback=f"BranchFailed: {error}")


def let_go(request: Any, fault: BaseException) -> None:
    """Give back a task that nobody will see to its end."""
    _log.warning("task %s comes again: %s", getattr(request, "id", "?"), type(fault).__name__)
    if isinstance(request, ReportsAll):
        request.let_go()
