"""The calls in flight of a worker process, and what ends them early."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections import defaultdict
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

from fanout.core.errors import BrokerError, UnknownRunError
from fanout.core.records import ErrorKind, RunStatus
from fanout.system.logs import about

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container, Coroutine

    from fanout.stores import RedisStore
    from workers.context.event_loop import LoopThread

__all__ = ["BEFORE_CALL", "CallStoppedError", "HandBack", "InFlight", "StopReason", "run_ending"]

_T = TypeVar("_T")
# A stopped run should cost no more than this much of further calls.
_LOOK_S = 0.5

_log = logging.getLogger(__name__)


class StopReason(Enum):
    """Why a call was ended early."""

    HALTED = "halted"  # its run was stopped
    EXPIRED = "expired"  # its run's deadline passed
    HANDED_BACK = "handed back"  # the worker stops: another worker makes the call
    PAUSED = "paused"  # its run was paused while the branch waited to call


# When a branch without a call was stopped.
BEFORE_CALL = "before this branch was called"
_RUN_ENDINGS = {
    StopReason.HALTED: (ErrorKind.CANCELLED, "the run was stopped"),
    StopReason.EXPIRED: (ErrorKind.EXPIRED, "the run's deadline passed"),
}


def run_ending(reason: StopReason, *, when: str) -> tuple[ErrorKind, str]:
    """Return kind and message of the error of a branch whose run was halted or has expired."""
    kind, message = _RUN_ENDINGS[reason]
    return kind, f"{message} {when}"


class CallStoppedError(Exception):
    """The call was ended early."""

    def __init__(self, reason: StopReason) -> None:
        super().__init__(reason.value)
        self.reason = reason


class InFlight:
    """Awaits the calls of branches, each in its own task, and cancels calls that must end.

    It reads each run with calls in flight twice a second: one small read per run, regardless of the
    number of its calls.
    """

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        # By run, and by whether the run's deadline applies: it does not apply to the reduce.
        self._tasks: defaultdict[tuple[str, bool], dict[asyncio.Task[Any], StopReason | None]]
        self._tasks = defaultdict(dict)
        self._watcher: asyncio.Task[None] | None = None
        # Tasks that wait until they may call.
        self._waiting: set[asyncio.Task[Any]] = set()
        self._is_stopping = False
        self._is_handing_back = False
        # The number of calls in flight.
        self.count = 0

    async def call(
        self, run_id: str, coroutine: Coroutine[Any, Any, _T], *, has_deadline: bool
    ) -> _T:
        """Await a call of a run.

        Raises:
            CallStoppedError: It was ended early.
        """
        task = asyncio.current_task()
        if self._is_handing_back or task is None:
            coroutine.close()
            raise CallStoppedError(StopReason.HANDED_BACK)
        calls = self._tasks[run_id, has_deadline]
        calls[task] = None
        self.count += 1
        self._watch()
        try:
            return await coroutine
        except asyncio.CancelledError:
            # The branch goes on without its call: its outcome must be recorded.
            task.uncancel()
            raise CallStoppedError(calls[task] or StopReason.HANDED_BACK) from None
        finally:
            self.count -= 1
            del calls[task]
            if not calls:
                self._tasks.pop((run_id, has_deadline), None)

    async def wait(self, seconds: float) -> None:
        """Wait between calls; if its run is paused meanwhile, the branch goes back to the queue.

        Raises:
            CallStoppedError: This worker stops.
        """
        await self.until(asyncio.sleep(seconds))

    async def until(self, awaited: Awaitable[_T]) -> _T:
        """Await what a branch waits for between its calls, as ``wait`` does.

        Raises:
            CallStoppedError: This worker stops.
        """
        task = asyncio.current_task()
        try:
            self.require_room()
        except CallStoppedError:
            if inspect.iscoroutine(awaited):
                awaited.close()
            raise
        if task is None:
            return await awaited
        self._waiting.add(task)
        try:
            return await awaited
        finally:
            self._waiting.discard(task)

    async def wait_for(self, future: asyncio.Future[_T]) -> _T:
        """Await what another branch does, as ``wait`` waits; the future goes on if this one ends.

        Raises:
            CallStoppedError: This worker stops.
        """
        self.require_room()
        task = asyncio.current_task()
        if task is None:
            return await asyncio.shield(future)
        self._waiting.add(task)
        try:
            return await asyncio.shield(future)
        finally:
            self._waiting.discard(task)

    def require_room(self) -> None:
        """Raise CallStoppedError if this worker stops: it begins no further call of a branch."""
        if self._is_stopping or self._is_handing_back:
            raise CallStoppedError(StopReason.HANDED_BACK)

    def hand_back_waiting(self) -> None:
        """End the branches that wait to call; called on the loop."""
        self._is_stopping = True
        for key in list(self._tasks):
            self._cancel(key, StopReason.HANDED_BACK, only=self._waiting)

    def hand_back(self) -> None:
        """End all calls, now and later; called on the loop."""
        self._is_handing_back = True
        for key in list(self._tasks):
            self._cancel(key, StopReason.HANDED_BACK)

    async def aclose(self) -> None:
        """Stop reading the runs; the loop is about to end."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)

    def _watch(self) -> None:
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        while self._tasks:
            await asyncio.sleep(_LOOK_S)
            for key in list(self._tasks):
                # Calls that begin while the run is read may be those of its retry.
                begun = set(self._tasks.get(key, ()))
                reason = await asyncio.to_thread(self._reason, *key)
                if reason is StopReason.PAUSED:
                    begun &= self._waiting
                if reason is not None:
                    self._cancel(key, reason, only=begun)

    def _reason(self, run_id: str, has_deadline: bool) -> StopReason | None:  # noqa: FBT001 - half a key
        try:
            run = self._store.run(run_id)
        except UnknownRunError:
            return StopReason.HALTED
        except (BrokerError, OSError, RuntimeError) as error:
            # No error may end the watcher.
            _log.warning(
                "cannot see whether run %s goes on: %s", run_id, error, extra=about(run_id)
            )
            return None
        if run.halt is not None or run.has_ended:
            return StopReason.HALTED
        if has_deadline and run.is_overdue:
            return StopReason.EXPIRED
        return StopReason.PAUSED if run.status is RunStatus.PAUSED else None

    def _cancel(
        self,
        key: tuple[str, bool],
        reason: StopReason,
        *,
        only: Container[asyncio.Task[Any]] | None = None,
    ) -> None:
        calls = self._tasks.get(key, {})
        for task in calls:
            if only is None or task in only:
                calls[task] = calls[task] or reason
                task.cancel()


class HandBack:
    """Ends calls, so that their branches go back to the queue; any thread may ask for it.

    Args:
        in_flight: The calls.
        loop: The loop that they run on.
    """

    def __init__(self, in_flight: InFlight, loop: LoopThread) -> None:
        self._in_flight = in_flight
        self._loop = loop
        self._begun = threading.Event()
        self._before: list[Callable[[], None]] = []

    @property
    def has_begun(self) -> bool:
        """Whether this process stops, and no longer waits for calls in flight."""
        return self._begun.is_set()

    def before(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` before this process ends its calls."""
        self._before.append(callback)

    def waiting(self) -> None:
        """Hand back the branches that only wait, for example for a model that fails."""
        self._loop.call_soon(self._in_flight.hand_back_waiting)

    def all(self) -> None:
        """Hand back all branches: end the calls in flight."""
        for callback in self._before:
            callback()
        self._begun.set()
        self._loop.call_soon(self._in_flight.hand_back)
