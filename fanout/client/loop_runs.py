"""A run that belongs to a task of an event loop, and is cancelled with it."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from fanout.client.loop_threads import finished, in_thread
from fanout.core.errors import FanoutError, UnknownRunError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from fanout.client.run import Run
    from fanout.runs.branch_output import Output
    from fanout.runs.results import Result
    from fanout.runs.status import Status

__all__ = ["LoopRun", "Submit"]

# A run whose submission takes longer is cancelled by the submission itself.
_KNOWN_S = 10.0


class Submit(Protocol):
    """Submits a run; for the arguments see ``Client.submit``."""

    def __call__(
        self, *, on_created: Callable[[str], None], should_stop: Callable[[], bool]
    ) -> Run:
        """Return the run, once its input is enqueued."""
        ...


class LoopRun:
    """A run of a task. What blocks is done in threads, also the reading of the input.

    Args:
        submit: Submits it.
        find: Returns its handle by its id, while its input is still being read.
    """

    def __init__(self, submit: Submit, find: Callable[[str], Run]) -> None:
        self._find = find
        self._submit = submit
        self._run_id: str | None = None
        # Set once the run exists, or will not exist.
        self._is_known = threading.Event()
        self._is_over = threading.Event()

    @property
    def is_over(self) -> Callable[[], bool]:
        """Whether its task was cancelled, or has ended."""
        return self._is_over.is_set

    async def result(self, on_progress: Callable[[Status], None] | None) -> Result[Any]:
        """Submit it, wait for its end, and return its result; cancel it if the task is cancelled."""
        try:
            run = await in_thread(self._submitted)
            await run.await_(on_progress=on_progress)
            return await in_thread(run.result)
        except asyncio.CancelledError:
            await self.cancel()
            raise

    def _submitted(self) -> Run:
        try:
            return self._submit(on_created=self._created, should_stop=self._is_over.is_set)
        finally:
            self._is_known.set()

    def _created(self, run_id: str) -> None:
        self._run_id = run_id
        self._is_known.set()

    async def cancel(self) -> None:
        """Cancel the run, and wait a while for its end, even if the task is cancelled again."""
        self._is_over.set()
        await finished(self._end())

    async def _end(self) -> None:
        # Of a run that cannot be reached, the server knows no more than before.
        with suppress(FanoutError):
            await in_thread(lambda: self._is_known.wait(_KNOWN_S))
            if self._run_id is not None:
                run = await in_thread(self._found)
                await run.acancel()

    def _found(self) -> Run:
        return self._find(self._run_id or "")

    async def outputs(self) -> AsyncGenerator[Output[Any], None]:
        """Submit it, and yield each branch as it ends; cancel it if the caller wants no more."""
        submitted = in_thread(self._submitted)
        # It may fail when nobody waits for it any more.
        submitted.add_done_callback(lambda future: future.cancelled() or future.exception())
        try:
            await in_thread(self._is_known.wait)
            # A run without a branch is deleted, and the submission says why.
            with suppress(UnknownRunError):
                if self._run_id is not None:
                    run = await in_thread(self._found)
                    async for output in run.astream(cancels=False):
                        yield output
            await submitted
        except (asyncio.CancelledError, GeneratorExit):
            await self.cancel()
            raise
