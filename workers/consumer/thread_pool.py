"""Celery's pool of threads, but a control task does not wait for a thread that is in a call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.concurrency.base import apply_target
from celery.concurrency.thread import ApplyResult
from celery.concurrency.thread import TaskPool as CeleryPool

from fanout.system.threads import ReadyThreads
from workers.consumer.task_requests import BranchRequest, let_go

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TaskPool"]

# Control tasks at once.
_CONTROL = 4


class TaskPool(CeleryPool):  # type: ignore[misc]
    """Branches in as many threads as the worker's concurrency, other tasks in a few more.

    Attributes:
        control_room: How many control tasks it runs while all slots are taken.
    """

    control_room = _CONTROL

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.executor = ReadyThreads(self.limit, "fanout-branch", first=1)
        self._control = ReadyThreads(_CONTROL, "fanout-task")

    def on_stop(self) -> None:
        """Wait for what is in flight."""
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
        # Celery names the request only as the owner of what is called back.
        request = getattr(accept_callback, "__self__", None)
        threads = self.executor if isinstance(request, BranchRequest) else self._control

        def apply() -> None:
            try:
                apply_target(target, args, kwargs, callback, accept_callback)
            except BaseException as fault:  # noqa: BLE001 - nobody else hears of it
                let_go(request, fault)

        return ApplyResult(threads.submit(apply))
