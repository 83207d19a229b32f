"""The calls of a worker process that are in flight, so that those of a stopped run can be ended."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from typing import TYPE_CHECKING, Any, TypeVar

from fanout.errors import BrokerError, UnknownRunError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from fanout.stores import Store

__all__ = ["CallStoppedError", "InFlight"]

_T = TypeVar("_T")
# A stopped run should cost no more than this much of further calls.
_LOOK_S = 0.5

_log = logging.getLogger(__name__)


class CallStoppedError(Exception):
    """The run was stopped while the call was in flight."""


class InFlight:
    """Runs calls on the current loop, and cancels those whose run is stopped.

    It looks at each run with calls in flight twice a second: one small read a run, whatever the
    number of its calls.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tasks: defaultdict[str, set[asyncio.Task[Any]]] = defaultdict(set)
        self._watcher: asyncio.Task[None] | None = None

    async def call(self, run_id: str, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Await a call of a run.

        Raises:
            CallStoppedError: The run was stopped meanwhile.
        """
        task = asyncio.ensure_future(coroutine)
        self._tasks[run_id].add(task)
        self._watch()
        try:
            return await task
        except asyncio.CancelledError:
            raise CallStoppedError from None
        finally:
            self._tasks[run_id].discard(task)
            if not self._tasks[run_id]:
                del self._tasks[run_id]

    def _watch(self) -> None:
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        while self._tasks:
            await asyncio.sleep(_LOOK_S)
            for run_id in list(self._tasks):
                if await asyncio.to_thread(self._is_stopped, run_id):
                    self._cancel(run_id)

    def _is_stopped(self, run_id: str) -> bool:
        try:
            return self._store.run(run_id).halt is not None
        except UnknownRunError:
            return True
        except BrokerError as error:
            _log.warning("cannot see whether run %s goes on: %s", run_id, error)
            return False

    def _cancel(self, run_id: str) -> None:
        for task in self._tasks.get(run_id, ()):
            task.cancel()
