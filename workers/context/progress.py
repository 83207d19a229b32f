"""Tracks whether branches make progress: leases and claims depend on that, not on the process.

Each step of a branch has a longest time: a call has its deadline, a step at the server takes
moments. A requested wait (for a slot, a rate limit or a failing provider) may last as long as it
needs. A branch that stands still for longer while the server answers is left to other workers.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from fanout.core.ids import BranchId

__all__ = ["BranchTracker", "StallWatch", "TrackedBranch"]


class TrackedBranch:
    """One delivery of a branch that this process works on.

    Attributes:
        branch_id: The branch.
        token: The token of its begin; empty before that.
        task: The coroutine that processes it.
        doing: The current step, for log lines.
        is_stuck: Whether it was left to other workers, and has not moved since.
    """

    __slots__ = ("_clock", "_due_at", "_since", "branch_id", "doing", "is_stuck", "task", "token")

    def __init__(
        self,
        branch_id: BranchId,
        task: asyncio.Task[object] | None,
        clock: Callable[[], float],
    ) -> None:
        self.branch_id = branch_id
        self.task = task
        self.token = ""
        self._clock = clock
        self.moves("waits for a slot")

    def moves(self, doing: str, *, within_s: float | None = None) -> None:
        """Begin the next step, which takes at most ``within_s`` seconds; None for no limit."""
        now = self._clock()
        self.doing = doing
        self.is_stuck = False
        self._since = now
        self._due_at = None if within_s is None else now + within_s

    def is_overdue(self, now: float) -> bool:
        """Return whether the step takes longer than it may."""
        return self._due_at is not None and now > self._due_at

    def stands_s(self, now: float) -> float:
        """Return the seconds since the step began."""
        return now - self._since


class BranchTracker:
    """The branches that a process works on."""

    def __init__(self, *, step_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.step_s = step_s
        self.clock = clock
        self._all: set[TrackedBranch] = set()
        self._turned_at = clock()

    def turns(self) -> None:
        """Note that the loop of the branches runs; called on it."""
        self._turned_at = self.clock()

    @property
    def is_loop_still(self) -> bool:
        """Whether something blocks the loop: then no branch on it moves."""
        return self.clock() - self._turned_at > self.step_s

    def begin(self, branch_id: BranchId, task: asyncio.Task[object] | None = None) -> TrackedBranch:
        """Track a delivery of a branch."""
        standing = TrackedBranch(branch_id, task, self.clock)
        self._all.add(standing)
        return standing

    def end(self, standing: TrackedBranch) -> None:
        """Stop tracking a delivery that was settled or given back."""
        self._all.discard(standing)

    def stuck(self) -> list[TrackedBranch]:
        """Return the branches that were left to other workers and are still here."""
        return [standing for standing in self._copied() if standing.is_stuck]

    def overdue(self) -> list[TrackedBranch]:
        """Return the overdue branches that are not marked as stuck yet."""
        now, all_are = self.clock(), self.is_loop_still
        found = [each for each in self._copied() if not each.is_stuck]
        return found if all_are else [each for each in found if each.is_overdue(now)]

    def _copied(self) -> list[TrackedBranch]:
        while True:
            try:
                return list(self._all)
            except RuntimeError:
                # The loop added or removed one meanwhile.
                continue


class StallWatch:
    """Finds stuck branches: overdue at two looks, while the server answered at both.

    An unreachable server holds up all branches. They move within moments of its return, and so before
    the second look.
    """

    def __init__(self, progress: BranchTracker) -> None:
        self._progress = progress
        self._suspected: set[TrackedBranch] = set()

    def look(self) -> list[TrackedBranch]:
        """Return the newly stuck branches; called when the server has just accepted a write."""
        overdue = self._progress.overdue()
        if not overdue and not self._suspected:
            return []
        found = [standing for standing in overdue if standing in self._suspected]
        for standing in found:
            standing.is_stuck = True
        self._suspected = set(overdue) - set(found)
        return found

    def forgive(self) -> None:
        """Drop all suspicions: the server was unreachable or refused a write."""
        self._suspected.clear()
