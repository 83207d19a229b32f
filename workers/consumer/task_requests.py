"""Requests of a worker: they report every end of a task to monitors such as Flower."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionWithTraceback
from celery.exceptions import Ignore, InvalidTaskError, Reject, Retry
from celery.worker import request as celery_request
from celery.worker import state
from celery.worker.request import Request
from celery.worker.state import successful_requests, task_ready
from kombu.transport import virtual

from fanout.core.ids import BranchId
from workers.branch.execution import BranchFailed
from workers.consumer.envelope import LONGEST_WAIT_S
from workers.consumer.server_clock import clock_lead
from workers.context.app import context_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from billiard.einfo import ExceptionInfo

    from workers.context.app import WorkerApp
    from workers.context.branch_steps import BranchSteps

__all__ = [
    "BranchRequest",
    "HandedBackError",
    "MonitoredRequest",
    "PostponedError",
    "RunGoneError",
    "StillHeldError",
    "abandon",
    "delivery_of",
]

_log = logging.getLogger(__name__)


class PostponedError(Ignore):  # type: ignore[misc]
    """The message is done; the task itself is published again later."""


class RunGoneError(Ignore):  # type: ignore[misc]
    """The run does not exist: the message is removed, and no chord counts it."""


class StillHeldError(Ignore):  # type: ignore[misc]
    """Another worker has the branch: this message waits in case that worker dies."""


class HandedBackError(Reject):  # type: ignore[misc]
    """The branch returns to its queue; its claim, if it had one, is released."""


class MonitoredRequest(Request):  # type: ignore[misc]
    """A request that sends an event to monitors however its task ends.

    Celery sends no event for a task that is ignored or goes back to its queue: a monitor would show
    it as started until a worker processes it again, if ever. ``RETRY`` is the closest state.

    The start time of a retried task is by the server's clock.
    """

    def __init__(self, *args: Any, app: WorkerApp, **options: Any) -> None:
        super().__init__(*args, app=app, **options)
        if self._eta is not None:
            self._eta += clock_lead(app)
            if self._eta - datetime.now(UTC) > timedelta(seconds=LONGEST_WAIT_S):
                # No task of fanout waits for so long, and the worker would hold it until then.
                raise InvalidTaskError("begins too late")

    def on_failure(
        self,
        exc_info: ExceptionInfo,
        send_failed_event: bool = True,  # noqa: FBT001, FBT002 - Celery's
        return_ok: bool = False,  # noqa: FBT001, FBT002 - Celery's
    ) -> Any:
        """Settle a task that raised."""
        error = _raised(exc_info)
        self.on_raised(error)
        if isinstance(error, BranchFailed):
            # An ordinary end with the same traceback each time, which would only fill a monitor's
            # memory.
            exc_info.traceback = f"{type(error).__name__}: {error}"
        if isinstance(error, StillHeldError):
            # Neither acknowledged nor renewed: it returns to its queue when its lease ends.
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
        """Retry a task whose process died.

        Celery publishes a further attempt, and would count the task as failed if the server refuses
        it. But the message still exists: it returns to its queue when its lease ends.
        """
        if self.release_claim() and super()._retry_worker_lost(exc, exc_info):
            return True
        abandon(self, exc)
        self.send_event("task-retried", exception=type(exc).__name__)
        return True

    def on_raised(self, error: BaseException) -> None:
        """Note the error of a task before it is settled."""

    def release_claim(self) -> bool:
        """Release the claim of the dead process; return whether that is done.

        A release that fails now is tried again later: until then, other workers wait for it.
        """
        return True

    def acknowledge(self) -> None:
        """Acknowledge the message; if the broker refuses, a redelivery finds the task done."""
        self._try_to_settle(super().acknowledge)

    def reject(self, requeue: bool = False) -> None:  # noqa: FBT001, FBT002 - Celery's
        """Put the message back, or drop it; if the broker refuses, it is redelivered later."""
        self._try_to_settle(partial(super().reject, requeue))

    def _try_to_settle(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:  # noqa: BLE001 - else the worker holds the request for ever
            _log.warning("task %s comes again: %s", self.id, type(error).__name__)
            self.forget()

    def abandon(self) -> None:
        """End the request without asking the server: the message returns when its lease ends."""
        task_ready(self)
        if not self.acknowledged:
            self.forget()

    def forget(self) -> None:
        """Mark the message as settled in kombu and Celery; the caller updates the server."""
        message = self.message
        if message.channel is not None:
            virtual.QoS.ack(message.channel.qos, message.delivery_tag)
        message._state = "ACK"  # noqa: SLF001 - as Message.ack() sets it
        self.acknowledged = True


class BranchRequest(MonitoredRequest):
    """The request of a branch, which may end on the worker's loop (workers.consumer.pool)."""

    @property
    def token(self) -> str:
        """The id of this delivery, as in its claim."""
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
        """Its index in that header."""
        index: int | None = self.request_dict.get("group_index")
        return index

    @property
    def context(self) -> Any:
        """The context by which Celery's backends identify a task."""
        return self._context

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """Note that the branch begins, as Celery does, but without a new count for each branch."""
        # It is acknowledged at its end: see the task's options.
        if self._terminate_on_ack is not None or celery_request._does_debug:  # noqa: SLF001 - Celery's
            super().on_accepted(pid, time_accepted)
            return
        self.worker_pid = pid
        self.time_start = time.time() - (time.monotonic() - time_accepted)
        state.requests[self.id] = self
        state.active_requests.add(self)
        state.total_count[self.name] += 1
        state.all_total_count[0] += 1
        self.send_event("task-started")

    def revoked(self) -> bool:
        """Return whether the branch was revoked; nearly none is."""
        if self.id in state.revoked or self._already_revoked or state.revoked_stamps:
            return bool(super().revoked())
        return self.expires is not None and bool(super().revoked())

    def release_claim(self) -> bool:
        """Release the claim of this delivery; its begin still counts."""
        return self._steps.releases.now(self.branch_id, self.token, counts=True)

    def on_raised(self, error: BaseException) -> None:
        """Count a failed branch, or release its claim: it has an outcome only if it failed."""
        if isinstance(error, BranchFailed):
            self._steps.count_ended()
        elif not isinstance(error, (HandedBackError, Ignore)):
            # The process that ran the branch may have failed to release its claim.
            is_no_fault = isinstance(error, (Reject, Retry))
            self._steps.releases.later(self.branch_id, self.token, counts=not is_no_fault)

    def acknowledge(self) -> None:
        """Acknowledge the message, and count the branch if it has succeeded."""
        # Celery subclasses this class and overrides on_success without a call of the base class.
        if self.id in successful_requests:
            self._steps.count_ended()
        super().acknowledge()

    def on_retry(self, exc_info: ExceptionInfo) -> None:
        """Settle a branch that was published again because the server was unreachable."""
        self._steps.releases.now(self.branch_id, self.token, counts=False)
        super().on_retry(exc_info)

    def abandon(self) -> None:
        """End the request; its begin counts, so that a branch that always fails ends."""
        self._steps.releases.later(self.branch_id, self.token, counts=True)
        super().abandon()

    @property
    def _steps(self) -> BranchSteps:
        steps: BranchSteps = context_of(self).branches
        return steps

    def on_settled(self, error: BranchFailed | None) -> None:
        """Record the end, after the chord has counted the branch and its message is gone."""
        # Not as successful: Celery would remember the id for messages not acknowledged yet.
        task_ready(self)
        runtime_s = time.time() - (self.time_start or 0.0)
        if error is None:
            self.send_event("task-succeeded", result="None", runtime=runtime_s)
        else:
            exception = f"{type(error).__name__}({str(error)!r})"
            self.send_event("task-failed", exception=exception, traceback=f"BranchFailed: {error}")


def _raised(exc_info: ExceptionInfo) -> Any:
    """Return the exception of a task; an exception from another process is wrapped."""
    error = exc_info.exception
    return error.exc if isinstance(error, ExceptionWithTraceback) else error


def delivery_of(properties: dict[str, Any]) -> str:
    """Return the id of a delivery, given the properties of its message.

    A message gets a new tag each time it is taken (fanout.broker.message_leases).
    """
    tag: str = properties["delivery_tag"]
    return tag


def abandon(request: Any, fault: BaseException) -> None:
    """Give back a task that no code of this worker will end."""
    _log.warning("task %s comes again: %s", getattr(request, "id", "?"), type(fault).__name__)
    if isinstance(request, MonitoredRequest):
        request.abandon()
