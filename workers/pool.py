"""Celery's pool for branches: each is a coroutine on the worker's loop.

A branch waits for nearly all of its time, for the model and for the server. In a pool of threads
each would hold one, and be handed from thread to thread four times. Here a worker has one loop,
and its branches share their round trips (workers.batches). The few other tasks, which block, run
in threads as Celery has them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import TYPE_CHECKING, Any

from celery.concurrency.base import BasePool, apply_target

from workers.batches import Batches
from workers.branches import BranchFailed, process_branch
from workers.requests import BranchRequest
from workers.settling import settle

if TYPE_CHECKING:
    from collections.abc import Callable

    from kombu.asynchronous import Hub

__all__ = ["TaskPool"]

# Tasks other than branches: more of them at once would only hold each other up.
_THREADS = 8
# How soon a branch goes back to its queue whose end the server does not take.
_AGAIN_S = 1.0

_log = logging.getLogger(__name__)


class _Branch:
    """A branch that has arrived.

    Attributes:
        request: What Celery knows of it.
        run: Has Celery's tracer run its task in a thread.
        ended: Done when it has ended.
    """

    def __init__(self, request: BranchRequest, run: Callable[[Any], Future[Any]]) -> None:
        self.request = request
        self.run = run
        self.ended: Future[None] = Future()


class TaskPool(BasePool):  # type: ignore[misc]
    """Runs branches on the loop of the worker's runtime, and other tasks in threads."""

    body_can_be_buffer = True
    signal_safe = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._threads = ThreadPoolExecutor(min(self.limit, _THREADS), "fanout-task")
        self._arrived: deque[_Branch] = deque()
        self._is_waking = threading.Event()
        self._running: set[Future[None]] = set()
        self._hub: Hub | None = None

    def on_start(self) -> None:
        """Make the runtime ready, which belongs to this process alone."""
        self._runtime = self.app.fanout_runtime()
        self._loop = self._runtime.loop
        self._slots = asyncio.Semaphore(self.limit)
        self._settle: Batches[tuple[BranchRequest, BranchFailed | None], None]
        self._settle = Batches(partial(settle, self._runtime), self._runtime.threads)

    def register_with_event_loop(self, loop: Hub) -> None:
        """Remember whom to wake when there is room for more."""
        self._hub = loop

    def on_stop(self) -> None:
        """Wait for what is in flight."""
        wait(list(self._running))
        self._threads.shutdown(cancel_futures=True)

    def on_apply(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
        callback: Callable[..., Any] | None = None,
        accept_callback: Callable[..., Any] | None = None,
        **_: Any,
    ) -> Future[Any]:
        """Run a task: a branch on the loop, any other in a thread, as Celery's own pool does."""
        # Celery names the request only as the owner of what is called back.
        request = getattr(accept_callback, "__self__", None)

        def run(on_accept: Callable[..., Any] | None) -> Future[Any]:
            return self._threads.submit(apply_target, target, args, kwargs, callback, on_accept)

        if isinstance(request, BranchRequest):
            return self._process_soon(_Branch(request, run))
        return run(accept_callback)

    def _process_soon(self, branch: _Branch) -> Future[Any]:
        """Begin a branch; the loop is woken once for all that arrive together."""
        self._running.add(branch.ended)
        self._arrived.append(branch)
        if not self._is_waking.is_set():
            self._is_waking.set()
            self._loop.call_soon_threadsafe(self._begin_arrived)
        return branch.ended

    def _begin_arrived(self) -> None:
        self._is_waking.clear()
        while self._arrived:
            branch = self._arrived.popleft()
            task = self._loop.create_task(self._process(branch))
            task.add_done_callback(lambda _, branch=branch: self._forget(branch))

    def _forget(self, branch: _Branch) -> None:
        branch.ended.set_result(None)
        self._running.discard(branch.ended)

    async def _process(self, branch: _Branch) -> None:
        request = branch.request
        error: BranchFailed | None = None
        async with self._slots:
            request.on_accepted(os.getpid(), time.monotonic())
            try:
                await process_branch(self._runtime, **request.kwargs, tries=request.tries)
            except BranchFailed as failed:
                error = failed
            except BaseException as fault:  # noqa: BLE001 - Celery's own tracer sees to it
                request.request_dict["ended"] = fault
                branch.run(None)
                return
        await self._end(request, error)

    async def _end(self, request: BranchRequest, error: BranchFailed | None) -> None:
        try:
            await self._settle((request, error))
        except Exception as fault:  # noqa: BLE001 - its outcome is written: it may come again
            _log.warning("branch %s comes again: %s", request.id, type(fault).__name__)
            await asyncio.sleep(_AGAIN_S)
            await asyncio.to_thread(request.reject, requeue=True)
        else:
            request.on_settled(error)
        if self._hub is not None:
            self._hub.call_soon(_look)

    def _get_info(self) -> dict[str, Any]:
        return {**super()._get_info(), "branches": len(self._running)}


def _look() -> None:
    """Do nothing: the hub that was woken looks at the queues by itself."""
