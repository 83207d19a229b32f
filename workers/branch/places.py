"""Places: room for the calls of branches, with the permits of their runs."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from fanout.core.errors import StoredDataError, UnknownRunError
from workers.branch.delivery_ends import BranchHandedBack
from workers.context.admission import AdmissionClosedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from workers.context.worker_context import WorkerContext

__all__ = ["Place"]


class Place:
    """A place of this process for a call of a run, and a permit of the run if it has a cap.

    Args:
        context: The context of this worker process.
        run_id: The run of the branch that makes the call.
        on_admitted: Called when the branch has its place.
        patience_s: Seconds that the branch waits for a permit; None for any time.

    Raises:
        BranchHandedBack: On entering: it has waited for so long, or this worker stops.
    """

    def __init__(
        self,
        context: WorkerContext,
        run_id: str,
        on_admitted: Callable[[], None],
        patience_s: float | None,
    ) -> None:
        self._context = context
        self._admission = context.admission
        self._run_id = run_id
        self._on_admitted = on_admitted
        self._patience_s = patience_s
        # Whether the branch has it.
        self.is_held = False
        # Whether the branch waits without it for a limit.
        self.is_away = False

    async def __aenter__(self) -> Self:
        if not self.begins():
            await self.begin()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self.leave()

    def begins(self) -> bool:
        """Take the place, and return True, if that takes no wait; this is faster than ``begin``."""
        spec = self._context.runs.specs.known(self._run_id)
        if spec is None:
            return False
        try:
            has_begun = self._admission.begins(self._run_id, spec.max_workers, spec.priority)
        except AdmissionClosedError:
            raise BranchHandedBack from None
        if has_begun:
            self._is_admitted()
        return has_begun

    async def begin(self) -> None:
        """Wait for the place."""
        await self._enter()
        self._is_admitted()

    def _is_admitted(self) -> None:
        self.is_held = True
        try:
            self._on_admitted()
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """Leave the place to another branch, as long as this one waits. Safe to call twice."""
        if self.is_away:
            self.is_away = False
            self._admission.away -= 1
        if self.is_held:
            self.is_held = False
            self._admission.leave(self._run_id)

    def leave_for_now(self) -> None:
        """Leave the place to another branch, as this one waits for a limit; see ``enter``."""
        # In a pool of threads or processes, a branch keeps its thread anyway.
        if self.is_held and self._admission.places is not None:
            self.leave()
            self.is_away = True
            self._admission.away += 1

    async def enter(self, patience_s: float | None = None) -> None:
        """Take a place again, unless the branch has one.

        Args:
            patience_s: Seconds after which the branch goes back to the queue; None for never.

        Raises:
            BranchHandedBack: It has waited for so long, or this worker stops.
        """
        if not self.is_held:
            self.leave()
            self._admission.returning += 1
            try:
                async with asyncio.timeout(patience_s):
                    await self._enter(is_back=True)
            except TimeoutError:
                raise BranchHandedBack from None
            finally:
                self._admission.returning -= 1

    @property
    def is_left(self) -> bool:
        """Whether the branch has left it, for no limit: it needs one before its next call."""
        return not self.is_held and not self.is_away

    @property
    def is_wanted(self) -> bool:
        """Whether a branch waits for a place to make a call for which it has room."""
        return self._admission.returning > 0

    async def _enter(self, *, is_back: bool = False) -> None:
        specs = self._context.runs.specs
        spec = specs.ready(self._run_id)
        if spec is None:
            # The begin finds out that the run is gone, and the call that its spec cannot be read.
            with suppress(UnknownRunError, StoredDataError):
                spec = await specs(self._run_id)
        max_workers, priority = (None, 1.0) if spec is None else (spec.max_workers, spec.priority)
        entering = self._admission.enter(self._run_id, max_workers, priority, is_back=is_back)
        try:
            if self._patience_s is None or max_workers is None:
                await entering
            else:
                await asyncio.wait_for(entering, self._patience_s)
        except (AdmissionClosedError, TimeoutError):
            raise BranchHandedBack from None
        self.is_held = True
