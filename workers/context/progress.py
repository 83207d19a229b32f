"""Tracks whether branches make progress: leases and claims depend on that, not on the process.

Each step of a branch has a longest time: a call has its deadline, a step at the server takes
moments. A requested wait (for a place, a rate limit or a failing provider) may last as long as it
needs. A branch that stands still for longer while the server answers is left to other workers.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fanout.system.threads import copied

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from fanout.core.ids import BranchId

__all__ = ["ALIVE", "BEATS", "RENEWALS", "SURE", "BranchTracker", "TrackedBranch"]

# The intervals of a worker's heartbeats, as shares of the visibility timeout. The store considers a
# holder dead after BEATS / RENEWALS (half) of the timeout without a beat: before its messages are
# delivered again, and after up to two failed beats.
RENEWALS = 6
BEATS = 3
ALIVE = BEATS / RENEWALS
# If a holder is alive now, the store considers it alive for at least this share of the timeout.
SURE = (BEATS - 1) / RENEWALS


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

    def __init__(self, branch_id: BranchId, clock: Callable[[], float]) -> None:
        self.branch_id = branch_id
        self.task: asyncio.Task[object] | None = None
        self.token = ""
        self._clock = clock
        self.moves("waits for a place")

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
    """The branches that a process works on.

    A branch is stuck if it was overdue at two looks, and the server answered at both: an unreachable
    server holds up all branches, but they move within moments of its return.
    """

    def __init__(self, *, step_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.step_s = step_s
        self.clock = clock
        self._all: set[TrackedBranch] = set()
        self._suspected: set[TrackedBranch] = set()
        self._turned_at = clock()

    def turns(self) -> None:
        """Note that the loop of the branches runs; called on it."""
        self._turned_at = self.clock()

    @property
    def is_loop_still(self) -> bool:
        """Whether something blocks the loop: then no branch on it moves."""
        return self.clock() - self._turned_at > self.step_s

    def begin(self, branch_id: BranchId) -> TrackedBranch:
        """Track a delivery of a branch."""
        branch = TrackedBranch(branch_id, self.clock)
        self._all.add(branch)
        return branch

    def end(self, branch: TrackedBranch) -> None:
        """Stop tracking a delivery that was settled or handed back."""
        self._all.discard(branch)

    def stuck(self) -> list[TrackedBranch]:
        """Return the branches that were left to other workers and are still here."""
        return [branch for branch in copied(self._all) if branch.is_stuck]

    def overdue(self) -> list[TrackedBranch]:
        """Return the overdue branches that are not marked as stuck yet."""
        now, all_are = self.clock(), self.is_loop_still
        moving = [branch for branch in copied(self._all) if not branch.is_stuck]
        return moving if all_are else [branch for branch in moving if branch.is_overdue(now)]

    def newly_stuck(self) -> list[TrackedBranch]:
        """Return the branches found stuck; called when the server has just accepted a write."""
        overdue = self.overdue()
        found = [branch for branch in overdue if branch in self._suspected]
        for branch in found:
            branch.is_stuck = True
        self._suspected = set(overdue) - set(found)
        return found

    def forgive(self) -> None:
        """Drop all suspicions: the server was unreachable or refused a write."""
        self._suspected.clear()
