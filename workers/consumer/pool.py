"""Celery's pool for branches: each is a coroutine on the worker's loop.

A branch waits for nearly all of its time, for the model and for the server. In a pool of threads
each would hold one, and be handed from thread to thread four times. Here a worker has one loop,
and its branches share their round trips (workers.context.batches). The few other tasks, which block, run
in threads as Celery has them.
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
from workers.consumer.settlement import settle
from workers.consumer.task_requests import BranchRequest, let_go
from workers.context.app import app_of, context_of
from workers.context.batches import Batches

if TYPE_CHECKING:
    from collections.abc import Callable

    from kombu.asynchronous import Hub

    from workers.context.progress import TrackedBranch

    # Has Celery's tracer run a task in a thread, given what is called when that begins.
    _ByCelery = Callable[[Callable[..., Any] | None], None]

__all__ = ["TaskPool", "taken_ahead"]

# Tasks other than branches: more of them at once would only hold each other up.
_THREADS = 8
# How soon a branch goes back to its queue whose end the server does not take.
_AGAIN_S = 1.0

# So many branches more than are in flight are taken, to begin at once when a call has ended; none
# where few are in flight. What a worker has taken no other one begins: see fanout.broker.message_leases.
_AHEAD = 2
_MOST_AHEAD = 256
_MANY = 8

# Objects made, less those that went, until Python looks for cycles among the new ones; and how many
# of these looks until it looks further.
_GC_THRESHOLDS = (20_000, 50, 50)

_log = logging.getLogger(__name__)


def taken_ahead(concurrency: int) -> int:
    """Return how many branches a worker takes beyond those that it has in flight."""
    return min(_MOST_AHEAD, concurrency // _AHEAD) if concurrency >= _MANY else 0


class _Slot:
    """One of as many as calls may be in flight."""

    def __init__(self, pool: TaskPool, request: BranchRequest) -> None:
        self._pool = pool
        self._request = request

    async def __aenter__(self) -> None:
        await self._pool.slots.acquire()
        if not self._pool.active:
            # What only waited for a slot need not be waited for.
            self._pool.slots.release()
            raise BranchHandedBack
        try:
            self._request.on_accepted(os.getpid(), time.monotonic())
        except BaseException:
            self._pool.slots.release()
            raise

    async def __aexit__(self, *_exc: object) -> None:
        self._pool.slots.release()


class TaskPool(BasePool):  # type: ignore[misc]
    """Runs branches on the loop of the worker process, and other tasks in threads.

    Attributes:
        control_room: How many control tasks it runs while all slots are taken.
    """

    body_can_be_buffer = True
    signal_safe = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._threads: ReadyThreads
        self.control_room = min(self.limit, _THREADS)
        self._arrived: deque[tuple[BranchRequest, _ByCelery]] = deque()
        self._is_waking = False
        self._branches: set[asyncio.Task[None]] = set()

    def on_start(self) -> None:
        """Make the context of this process."""
        self._context = context_of(self)
        self._loop = self._context.loop.event_loop
        self.slots = asyncio.Semaphore(self.limit)
        self._threads = ReadyThreads(self.control_room, "fanout-task")
        if app_of(self).owns_process:
            # What was imported stays: it need not be looked through again and again. Nor need
            # what is in flight, at Python's own pace: a fifth of a busy worker's time.
            gc.freeze()
            gc.set_threshold(*_GC_THRESHOLDS)
        self._settle: Batches[tuple[BranchRequest, BranchFailed | None], None]
        steps = self._context.branches
        self._settle = Batches(self._settle_all, steps.threads, steps.linger_s)

    def register_with_event_loop(self, loop: Hub) -> None:
        """Remember the consumer's loop, which is woken when there is room for more."""
        self._hub = loop

    def on_stop(self) -> None:
        """Wait for what is in flight."""
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
        """Run a task: a branch on the loop, any other in a thread, as Celery's own pool does."""
        # Celery names the request only as the owner of what is called back.
        request = getattr(accept_callback, "__self__", None)

        def apply(on_accept: Callable[..., Any] | None) -> None:
            try:
                apply_target(target, args, kwargs, callback, on_accept)
            except BaseException as fault:  # noqa: BLE001 - nobody else hears of it
                let_go(request, fault)

        def by_celery(on_accept: Callable[..., Any] | None) -> None:
            try:
                self._threads.submit(apply, on_accept)
            except RuntimeError as fault:
                # The pool has ended.
                let_go(request, fault)

        if isinstance(request, BranchRequest):
            self._arrived.append((request, by_celery))
            if not self._is_waking:
                self._is_waking = True
                # When all that were taken together have arrived: the two threads would get into
                # each other's way.
                self._hub.call_soon(self._loop.call_soon_threadsafe, self._begin_arrived)
        else:
            by_celery(accept_callback)

    def _begin_arrived(self) -> None:
        # First: what arrives from now on wakes the loop again.
        self._is_waking = False
        while self._arrived:
            task = self._loop.create_task(self._process(*self._arrived.popleft()))
            self._branches.add(task)
            task.add_done_callback(self._branches.discard)

    async def _process(self, request: BranchRequest, by_celery: _ByCelery) -> None:
        progress = self._context.branches.progress
        standing = progress.begin(request.branch_id)
        try:
            await self._processed(request, standing, by_celery)
        except BaseException as fault:
            let_go(request, fault)
            raise
        finally:
            progress.end(standing)

    async def _processed(
        self, request: BranchRequest, standing: TrackedBranch, by_celery: _ByCelery
    ) -> None:
        error: BranchFailed | None = None
        slot, feed = _Slot(self, request), request.kwargs["feed"]
        try:
            await process_branch(self._context, standing, feed, token=request.token, slot=slot)
        except BranchFailed as failed:
            error = failed
        except BaseException as fault:  # noqa: BLE001 - Celery's own tracer sees to it
            if isinstance(fault, asyncio.CancelledError) or is_exhausted(fault):
                # It is no fault of the branch.
                fault = BranchHandedBack()
            request.request_dict["ended"] = fault
            by_celery(None)
            return
        standing.moves("is counted", within_s=self._context.branches.progress.step_s)
        await self._end(request, error)

    async def _end(self, request: BranchRequest, error: BranchFailed | None) -> None:
        try:
            await self._settle((request, error))
        except Exception as fault:  # noqa: BLE001 - its outcome is written: it may come again
            _log.warning("branch %s comes again: %s", request.id, type(fault).__name__)
            await asyncio.sleep(_AGAIN_S)
            await asyncio.to_thread(request.reject, requeue=True)
            task_ready(request)
        else:
            request.on_settled(error)

    def _settle_all(self, ends: list[tuple[BranchRequest, BranchFailed | None]]) -> list[None]:
        settled = settle(self._context, ends)
        # There is room for more.
        self._hub.call_soon(_look)
        return settled

    def _get_info(self) -> dict[str, Any]:
        return {**super()._get_info(), "branches": len(self._branches)}


def _look() -> None:
    """Do nothing: the hub that was woken looks at the queues by itself."""
