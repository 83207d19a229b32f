"""What a worker says of its tasks to whoever watches: Flower and other monitors."""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionWithTraceback
from celery.exceptions import Ignore, Reject, Retry
from celery.worker.state import task_ready
from kombu.transport import virtual

from fanout.core.ids import BranchId
from workers.branch.execution import BranchFailed
from workers.consumer.server_clock import ServerClockRequest
from workers.context.app import context_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from billiard.einfo import ExceptionInfo

    from workers.context.claim_releases import ClaimReleases

__all__ = [
    "BranchRequest",
    "PostponedError",
    "ReportsAll",
    "RunGoneError",
    "StillHeldError",
    "delivery_of",
    "let_go",
]

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
        error = _raised(exc_info)
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
        """Have a task whose process died done again.

        Celery publishes a further try, and would count the task as failed where the server refuses
        that. But its message is still there: it is back when its lease ends.
        """
        if self.gives_up() and super()._retry_worker_lost(exc, exc_info):
            return True
        let_go(self, exc)
        self.send_event("task-retried", exception=type(exc).__name__)
        return True

    def gives_up(self) -> bool:
        """Give up what its dead process held, so that others can do it; say whether that is done.

        What is not done now is done later: until then, others wait for it.
        """
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
    """A branch, and how it ended where that was on the worker's loop (workers.consumer.pool)."""

    @property
    def token(self) -> str:
        """Names this delivery, as in its claim."""
        return delivery_of(self.request_dict["properties"])

    @property
    def branch_id(self) -> BranchId:
        """The branch."""
        ids = self.kwargs
        return BranchId(ids["run_id"], ids["stage"], ids["shard"], ids["position"])

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

    def gives_up(self) -> bool:
        """Give up the claim that was made for this delivery; it was a begin all the same."""
        return self._releases.now(self.branch_id, self.token, counts=True)

    def on_failure(
        self,
        exc_info: ExceptionInfo,
        send_failed_event: bool = True,  # noqa: FBT001, FBT002 - Celery's
        return_ok: bool = False,  # noqa: FBT001, FBT002 - Celery's
    ) -> Any:
        """Settle a branch that ended without an outcome, unless it is BranchFailed."""
        error = _raised(exc_info)
        if not isinstance(error, (BranchFailed, Ignore)):
            # Whoever was at it may have failed to give it up.
            is_no_fault = isinstance(error, (Reject, Retry))
            self._releases.later(self.branch_id, self.token, counts=not is_no_fault)
        return super().on_failure(exc_info, send_failed_event, return_ok)

    def on_retry(self, exc_info: ExceptionInfo) -> None:
        """Settle a branch that was published again, as the server was away."""
        self._releases.now(self.branch_id, self.token, counts=False)
        super().on_retry(exc_info)

    def let_go(self) -> None:
        """Be done with it here: what fails so everywhere must end, so that its begin counts."""
        self._releases.later(self.branch_id, self.token, counts=True)
        super().let_go()

    @property
    def _releases(self) -> ClaimReleases:
        releases: ClaimReleases = context_of(self).branches.releases
        return releases

    def on_settled(self, error: BranchFailed | None) -> None:
        """Note its end, once its chord has counted it and its message is gone."""
        # Not as successful: Celery would remember it, for messages that are not acknowledged yet.
        task_ready(self)
        runtime_s = time.time() - (self.time_start or 0.0)
        if error is None:
            self.send_event("task-succeeded", result="None", runtime=runtime_s)
        else:
            said = f"{type(error).__name__}({str(error)!r})"
            self.send_event("task-failed", exception=said, traceback=f"BranchFailed: {error}")


def _raised(exc_info: ExceptionInfo) -> Any:
    """Return what a task raised; what comes from another process is wrapped."""
    error = exc_info.exception
    return error.exc if isinstance(error, ExceptionWithTraceback) else error


def delivery_of(properties: dict[str, Any]) -> str:
    """Return what names a delivery, given the properties of its message.

    A message gets a new tag each time it is taken (fanout.broker.message_leases).
    """
    tag: str = properties["delivery_tag"]
    return tag


def let_go(request: Any, fault: BaseException) -> None:
    """Give back a task that nobody will see to its end."""
    _log.warning("task %s comes again: %s", getattr(request, "id", "?"), type(fault).__name__)
    if isinstance(request, ReportsAll):
        request.let_go()
