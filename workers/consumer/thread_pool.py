"""Celery's pool of threads, but control tasks have threads of their own and wait for no call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.concurrency.base import apply_target
from celery.concurrency.thread import ApplyResult
from celery.concurrency.thread import TaskPool as CeleryPool

from fanout.system.threads import ReadyThreads
from workers.consumer.task_requests import BranchRequest, abandon

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ThreadTaskPool"]

# Threads for control tasks.
_CONTROL = 4


class ThreadTaskPool(CeleryPool):  # type: ignore[misc]
    """Runs branches in as many threads as the worker's concurrency, other tasks in a few more.

    Attributes:
        control_room: Number of control tasks that the pool runs while all slots are in use.
    """

    control_room = _CONTROL

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.executor = ReadyThreads(self.limit, "fanout-branch", first=1)
        self._control = ReadyThreads(_CONTROL, "fanout-task")

    def on_stop(self) -> None:
        """Wait for the tasks in flight."""
        super().on_stop()
        self._control.shutdown(cancel_futures=True)

    def on_apply(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
        callback: Callable[..., Any] | None = None,
        accept_callback: Callable[..., Any] | None = None,
        **_: Any,
    ) -> ApplyResult:
        """Run a task in a thread."""
        # Celery passes the request only as the object that owns the callback.
        request = getattr(accept_callback, "__self__", None)
        threads = self.executor if isinstance(request, BranchRequest) else self._control

        def apply() -> None:
            try:
                apply_target(target, args, kwargs, callback, accept_callback)
            except BaseException as fault:  # noqa: BLE001 - no other code sees it
                abandon(request, fault)

        return ApplyResult(threads.submit(apply))
