"""A Celery pool that runs each branch as a coroutine on the worker's event loop.

A branch waits nearly all of its time, for the model and for the server. In a pool of threads each
branch would hold a thread, and move between threads four times. Here a worker has one loop, and its
branches share round trips (workers.context.batches). The few other tasks block, so they run in
threads.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from celery.concurrency.base import BasePool, apply_target
from celery.worker.state import task_ready

from fanout.core.exhaustion import is_exhausted
from fanout.system.threads import ReadyThreads
from workers.branch.claims import BranchHandedBack
from workers.branch.execution import BranchFailed, process_branch
from workers.consumer.settlement import settle_branches
from workers.consumer.task_requests import BranchRequest, abandon
from workers.context.app import app_of, context_of
from workers.context.batches import Batches

if TYPE_CHECKING:
    from collections.abc import Callable

    from kombu.asynchronous import Hub

    from workers.context.progress import TrackedBranch

    # Runs a task in a thread by Celery's tracer; takes the callback for its start.
    _RunByCelery = Callable[[Callable[..., Any] | None], None]

__all__ = ["AsyncioPool", "taken_ahead"]

# Threads for tasks other than branches: more of them would only slow each other down.
_THREADS = 8
# Seconds before a branch goes back to its queue if the server refuses to settle it.
_REQUEUE_S = 1.0

# A worker takes one branch ahead per two slots, to begin at once when a call ends; none at a low
# concurrency, as no other worker begins a branch that was taken: see fanout.broker.message_leases.
_SLOTS_PER_AHEAD = 2
_MAX_AHEAD = 256
_MIN_CONCURRENCY = 8

# Thresholds of the garbage collector: net new objects before a collection of the youngest
# generation, and collections of one generation before one of the next.
_GC_THRESHOLDS = (20_000, 50, 50)

_log = logging.getLogger(__name__)


def taken_ahead(concurrency: int) -> int:
    """Return how many branches a worker takes beyond those in flight."""
    return (
        min(_MAX_AHEAD, concurrency // _SLOTS_PER_AHEAD) if concurrency >= _MIN_CONCURRENCY else 0
    )


class _CallSlot:
    """A slot for one call in flight."""

    def __init__(self, pool: AsyncioPool, request: BranchRequest) -> None:
        self._pool = pool
        self._request = request

    async def __aenter__(self) -> None:
        await self._pool.slots.acquire()
        if not self._pool.active:
            # The worker stops: a branch that has not begun is handed back.
            self._pool.slots.release()
            raise BranchHandedBack
        try:
            self._request.on_accepted(os.getpid(), time.monotonic())
        except BaseException:
            self._pool.slots.release()
            raise

    async def __aexit__(self, *_exc: object) -> None:
        self._pool.slots.release()


class AsyncioPool(BasePool):  # type: ignore[misc]
    """Runs branches on the loop of the worker process, and other tasks in threads.

    Attributes:
        control_room: Number of control tasks that the pool runs while all slots are in use.
    """

    body_can_be_buffer = True
    signal_safe = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._threads: ReadyThreads
        self.control_room = min(self.limit, _THREADS)
        self._arrived: deque[tuple[BranchRequest, _RunByCelery]] = deque()
        self._is_waking = False
        self._branches: set[asyncio.Task[None]] = set()

    def on_start(self) -> None:
        """Make the context of this process."""
        self._context = context_of(self)
        self._loop = self._context.loop.event_loop
        self.slots = asyncio.Semaphore(self.limit)
        self._threads = ReadyThreads(self.control_room, "fanout-task")
        if app_of(self).owns_process:
            # Imported objects stay, so exclude them from collections. Python's own thresholds
            # would spend a fifth of a busy worker's time on branches in flight.
            gc.freeze()
            gc.set_threshold(*_GC_THRESHOLDS)
        self._settle: Batches[tuple[BranchRequest, BranchFailed | None], None]
        steps = self._context.branches
        self._settle = Batches(self._settle_all, steps.threads, steps.linger_s)

    def register_with_event_loop(self, loop: Hub) -> None:
        """Keep the consumer's event loop, which the pool wakes when it has room for more."""
        self._hub = loop

    def on_stop(self) -> None:
        """Wait for the tasks in flight."""
        asyncio.run_coroutine_threadsafe(self._drain(), self._loop).result()
        self._threads.shutdown(cancel_futures=True)

    async def _drain(self) -> None:
        self._begin_arrived()
        while self._branches:
            await asyncio.wait(self._branches)

    def on_apply(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
        callback: Callable[..., Any] | None = None,
        accept_callback: Callable[..., Any] | None = None,
        **_: Any,
    ) -> None:
        """Run a branch on the loop, and any other task in a thread, as Celery's own pool does."""
        # Celery passes the request only as the object that owns the callback.
        request = getattr(accept_callback, "__self__", None)

        def apply(on_accept: Callable[..., Any] | None) -> None:
            try:
                apply_target(target, args, kwargs, callback, on_accept)
            except BaseException as fault:  # noqa: BLE001 - no other code sees it
                abandon(request, fault)

        def by_celery(on_accept: Callable[..., Any] | None) -> None:
            try:
                self._threads.submit(apply, on_accept)
            except RuntimeError as fault:
                # The pool has stopped.
                abandon(request, fault)

        if isinstance(request, BranchRequest):
            self._arrived.append((request, by_celery))
            if not self._is_waking:
                self._is_waking = True
                # Start branches only when the whole batch has arrived: otherwise the two threads
                # would contend.
                self._hub.call_soon(self._loop.call_soon_threadsafe, self._begin_arrived)
        else:
            by_celery(accept_callback)

    def _begin_arrived(self) -> None:
        # Reset first: a branch that arrives from now on wakes the loop again.
        self._is_waking = False
        while self._arrived:
            task = self._loop.create_task(self._process(*self._arrived.popleft()))
            self._branches.add(task)
            task.add_done_callback(self._branches.discard)

    async def _process(self, request: BranchRequest, by_celery: _RunByCelery) -> None:
        progress = self._context.branches.progress
        standing = progress.begin(request.branch_id)
        try:
            await self._process_and_settle(request, standing, by_celery)
        except BaseException as fault:
            abandon(request, fault)
            raise
        finally:
            progress.end(standing)

    async def _process_and_settle(
        self, request: BranchRequest, standing: TrackedBranch, by_celery: _RunByCelery
    ) -> None:
        error: BranchFailed | None = None
        slot, feed = _CallSlot(self, request), request.kwargs["feed"]
        try:
            await process_branch(self._context, standing, feed, token=request.token, slot=slot)
        except BranchFailed as failed:
            error = failed
        except BaseException as fault:  # noqa: BLE001 - Celery's tracer handles it
            if isinstance(fault, asyncio.CancelledError) or is_exhausted(fault):
                # The fault is not the branch's.
                fault = BranchHandedBack()
            request.request_dict["ended"] = fault
            by_celery(None)
            return
        standing.moves("is counted", within_s=self._context.branches.progress.step_s)
        await self._end(request, error)

    async def _end(self, request: BranchRequest, error: BranchFailed | None) -> None:
        try:
            await self._settle((request, error))
        except Exception as fault:  # noqa: BLE001 - its outcome is stored: a redelivery is harmless
            _log.warning("branch %s comes again: %s", request.id, type(fault).__name__)
            await asyncio.sleep(_REQUEUE_S)
            await asyncio.to_thread(request.reject, requeue=True)
            task_ready(request)
        else:
            request.on_settled(error)

    def _settle_all(self, ends: list[tuple[BranchRequest, BranchFailed | None]]) -> list[None]:
        settled = settle_branches(self._context, ends)
        # The pool has room for more.
        self._hub.call_soon(_wake)
        return settled

    def _get_info(self) -> dict[str, Any]:
        return {**super()._get_info(), "branches": len(self._branches)}


def _wake() -> None:
    """Do nothing: the hub polls the queues by itself once it is awake."""
