"""The pools of workers: branches run on an event loop, or in threads.

A branch waits nearly all of its time, for the model and for the server. In a pool of threads each
branch holds a thread, and moves between threads four times. A worker with an ``AsyncioPool`` has one
loop, and its branches share round trips (workers.context.batches). The few other tasks block, so they
run in threads. Neither pool lets them wait for calls.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import time
from collections import deque
from concurrent.futures import Future, wait
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from celery import states
from celery.concurrency.base import BasePool, apply_target
from celery.concurrency.thread import ApplyResult
from celery.concurrency.thread import TaskPool as CeleryThreadPool
from celery.worker.state import task_ready

from fanout.broker.message_leases import settle
from fanout.system.threads import ReadyThreads, copied
from workers.branch.delivery_ends import BranchGathered
from workers.branch.execution import BranchFailed, process_branch
from workers.consumer.task_requests import BranchRequest, abandon
from workers.context.app import app_of, context_of
from workers.context.batches import Batches

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor

    from kombu.asynchronous import Hub

    from fanout.broker.result_backend import TolerantRedisBackend
    from workers.context.progress import TrackedBranch
    from workers.context.worker_context import WorkerContext

    # Runs a task by Celery's tracer.
    _Apply = Callable[..., None]
    # A request, and the error with which its branch has ended, if any.
    _End = tuple[BranchRequest, BranchFailed | None]

__all__ = ["AsyncioPool", "ThreadTaskPool", "taken_ahead"]

# Threads for tasks other than branches: more of them would only slow each other down.
_THREADS = 8
_THREADS_BESIDE_BRANCHES = 4
# Seconds before a branch goes back to its queue if the server refuses to settle it.
_REQUEUE_S = 1.0
# The longest wait, when the worker stops, for the branches that go back to their queue.
_HAND_BACK_S = 10.0

# A worker takes one branch ahead per two places, to begin at once when a call ends; none at a low
# concurrency, as no other worker begins a branch that was taken: see fanout.broker.message_leases.
_PLACES_PER_AHEAD = 2
_MAX_AHEAD = 256
_MIN_CONCURRENCY = 8

# The most branches that may wait for permits of their runs beyond what is taken ahead, for each place
# and besides. Six messages of a run are in play for each of its permits (fanout.policy.admission).
_WAITING_EACH = 8
_WAITING = 500

# Thresholds of the garbage collector: net new objects before a collection of the youngest
# generation, and collections of one generation before one of the next. Two hundred branches in flight
# that look for kept answers and keep to a budget have more than 20,000.
_GC_THRESHOLDS = (50_000, 50, 50)

_log = logging.getLogger(__name__)


def taken_ahead(concurrency: int) -> int:
    """Return how many branches a worker takes beyond those in flight."""
    return (
        min(_MAX_AHEAD, concurrency // _PLACES_PER_AHEAD) if concurrency >= _MIN_CONCURRENCY else 0
    )


class AsyncioPool(BasePool):  # type: ignore[misc]
    """Runs branches on the loop of the worker process, and other tasks in threads.

    Attributes:
        control_room: Number of control tasks that the pool runs while all places are in use.
    """

    body_can_be_buffer = True
    signal_safe = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._threads: ReadyThreads
        self.control_room = min(self.limit, _THREADS)
        self._arrived: deque[tuple[BranchRequest, _Apply]] = deque()
        self._is_waking = False
        self._branches: set[asyncio.Task[None]] = set()
        # Branches that end by Celery's tracer, because they have no outcome.
        self._handed_back: set[Future[None]] = set()

    def on_start(self) -> None:
        """Make the context of this process."""
        self._context = context_of(self)
        self._loop = self._context.loop.event_loop
        self._context.admission.places = self.limit
        self._threads = ReadyThreads(self.control_room, "fanout-task")
        if app_of(self).owns_process:
            # Imported objects stay, so exclude them from collections. Python's own thresholds
            # would spend a fifth of a busy worker's time on branches in flight.
            gc.freeze()
            gc.set_threshold(*_GC_THRESHOLDS)
        steps = self._context.branches
        self._settle: Batches[_End, None]
        self._settle = Batches(self._settle_all, steps.threads, steps.linger_s)
        self._forget: Batches[BranchRequest, None]
        self._forget = Batches(self._forget_all, steps.threads, steps.linger_s)

    def register_with_event_loop(self, loop: Hub) -> None:
        """Keep the consumer's event loop, which the pool wakes when it has room for more."""
        self._hub = loop

    def on_close(self) -> None:
        """Hand back the branches that wait for a place: the worker stops."""
        self._loop.call_soon_threadsafe(self._context.leads.close)
        self._loop.call_soon_threadsafe(self._context.admission.close)

    def on_stop(self) -> None:
        """Wait for the tasks in flight."""
        asyncio.run_coroutine_threadsafe(self._drain(), self._loop).result()
        # Monitors hear of them as well.
        wait(copied(self._handed_back), timeout=_HAND_BACK_S)
        self._threads.shutdown(cancel_futures=True)

    async def _drain(self) -> None:
        self._begin_arrived()
        while self._branches:
            await asyncio.wait(self._branches)

    def on_apply(self, *task: Any, **options: Any) -> None:
        """Run a branch on the loop, and any other task in a thread, as Celery's own pool does."""
        request = _request_of(options)
        apply = partial(_apply, request, *task, **options)
        if isinstance(request, BranchRequest):
            self._arrived.append((request, apply))
            if not self._is_waking:
                self._is_waking = True
                # Start branches only when the whole batch has arrived: otherwise the two threads
                # would contend.
                self._hub.call_soon(self._loop.call_soon_threadsafe, self._begin_arrived)
        else:
            self._submit(request, apply)

    def _submit(self, request: Any, apply: _Apply, **options: Any) -> Future[None] | None:
        try:
            return self._threads.submit(apply, **options)
        except RuntimeError as fault:
            # The pool has stopped.
            abandon(request, fault)
            return None

    def _begin_arrived(self) -> None:
        # Reset first: a branch that arrives from now on wakes the loop again.
        self._is_waking = False
        while self._arrived:
            task = self._loop.create_task(self._process(*self._arrived.popleft()))
            self._branches.add(task)
            task.add_done_callback(self._branches.discard)

    async def _process(self, request: BranchRequest, apply: _Apply) -> None:
        progress = self._context.branches.progress
        branch = progress.begin(request.branch_id)
        try:
            await self._process_and_settle(request, branch, apply)
        except BaseException as fault:
            abandon(request, fault)
            raise
        finally:
            progress.end(branch)

    async def _process_and_settle(
        self, request: BranchRequest, branch: TrackedBranch, apply: _Apply
    ) -> None:
        error: BranchFailed | None = None
        try:
            await process_branch(
                self._context,
                branch,
                token=request.token,
                on_admitted=lambda: request.on_accepted(os.getpid(), time.monotonic()),
            )
        except BranchFailed as failed:
            error = failed
        except BranchGathered:
            await self._end_gathered(request)
            return
        except BaseException as fault:  # noqa: BLE001 - Celery's tracer handles it
            request.request_dict["ended"] = fault
            ending = self._submit(request, apply, accept_callback=None)
            if ending is not None:
                self._handed_back.add(ending)
                ending.add_done_callback(self._handed_back.discard)
            return
        branch.moves("is counted", within_s=self._context.branches.progress.step_s)
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
            self._context.branches.count_ended()
            request.on_settled(error)

    async def _end_gathered(self, request: BranchRequest) -> None:
        """Acknowledge the message of a branch that waits for a batch; its chord does not count it."""
        try:
            await self._forget(request)
        except Exception as fault:  # noqa: BLE001 - it waits already: a redelivery is harmless
            abandon(request, fault)
            return
        task_ready(request)
        request.send_event("task-retried", exception="PostponedError('its call waits for a batch')")

    def _forget_all(self, requests: list[BranchRequest]) -> list[None]:
        settle(self._context.connections.broker, [one.message.delivery_tag for one in requests])
        for request in requests:
            request.forget()
        self._hub.call_soon(_wake)
        return [None] * len(requests)

    def _settle_all(self, ends: list[_End]) -> list[None]:
        settle_branches(self._context, ends)
        # The pool has room for more.
        self._hub.call_soon(_wake)
        return [None] * len(ends)

    @property
    def waiting(self) -> int:
        """How many branches wait, for permits, limits or others, and take no places. For any thread."""
        context: WorkerContext = self._context
        others = context.leads.waiting + context.answers.waiting
        return context.admission.waiting_for_permits + others + context.admission.away

    def count_waiting(self) -> int:
        """Return for how many branches that wait others may be taken."""
        most: int = _WAITING_EACH * self.limit + _WAITING
        # Not too many, so that they do not pile up.
        return min(self.waiting, most)

    def _get_info(self) -> dict[str, Any]:
        return {**super()._get_info(), "branches": len(self._branches)}


def _wake() -> None:
    """Do nothing: the hub polls the queues by itself once it is awake."""


class ThreadTaskPool(CeleryThreadPool):  # type: ignore[misc]
    """Runs branches in as many threads as the worker's concurrency, other tasks in a few more.

    Attributes:
        control_room: Number of control tasks that the pool runs while all places are in use.
    """

    control_room = _THREADS_BESIDE_BRANCHES

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.executor: Executor = ReadyThreads(self.limit, "fanout-branch", first=1)
        self._control = ReadyThreads(self.control_room, "fanout-task")

    def on_stop(self) -> None:
        """Wait for the tasks in flight."""
        super().on_stop()
        self._control.shutdown(cancel_futures=True)

    def on_apply(self, *task: Any, **options: Any) -> ApplyResult:
        """Run a task in a thread."""
        request = _request_of(options)
        threads = self.executor if isinstance(request, BranchRequest) else self._control
        return ApplyResult(threads.submit(_apply, request, *task, **options))


def _request_of(options: dict[str, Any]) -> Any:
    """Return the request of a task: Celery passes it only as the object that owns the callback."""
    return getattr(options.get("accept_callback"), "__self__", None)


def _apply(request: Any, *task: Any, **options: Any) -> None:
    """Run a task by Celery's tracer."""
    try:
        apply_target(*task, **options)
    except BaseException as fault:  # noqa: BLE001 - no other code sees it
        abandon(request, fault)


def settle_branches(context: WorkerContext, ends: Sequence[_End]) -> None:
    """Count ended branches in their chords, and then acknowledge their messages.

    The order matters: a redelivered message of a counted branch does no harm, but a branch that is
    not counted must be redelivered.
    """
    connections = context.connections
    backend = cast("TolerantRedisBackend", connections.backend)
    backend.on_chord_parts_return(
        (request, states.SUCCESS if error is None else states.FAILURE, error)
        for request, error in ends
    )
    tags = [request.message.delivery_tag for request, _ in ends]
    settle(connections.broker, tags)
    for request, _ in ends:
        request.forget()
