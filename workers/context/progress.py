"""Whether branches make progress: their leases and claims follow that, not the life of the process.

Each step of a branch has a time that explains it: a call has its deadline, what is asked of the
server takes moments. A wait that somebody asked for, for a slot, a rate limit or a provider that is
to be left alone, explains itself for as long as it lasts. A branch that stands still for longer,
while the server answers, is left to others.
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
    """Where one delivery of a branch stands.

    Attributes:
        branch_id: The branch.
        token: Of its begin; empty before that.
        task: The coroutine that processes it.
        doing: What it does, in a word.
        is_stuck: Whether it was left to others, and has not moved since.
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
        """Begin the next step, which takes so many seconds at most; None: as long as it takes."""
        now = self._clock()
        self.doing = doing
        self.is_stuck = False
        self._since = now
        self._due_at = None if within_s is None else now + within_s

    def is_overdue(self, now: float) -> bool:
        """Say whether it stands still for longer than it can explain."""
        return self._due_at is not None and now > self._due_at

    def stands_s(self, now: float) -> float:
        """Return the seconds since it moved."""
        return now - self._since


class BranchTracker:
    """The branches that a process is at."""

    def __init__(self, *, step_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.step_s = step_s
        self.clock = clock
        self._all: set[TrackedBranch] = set()
        self._turned_at = clock()

    def turns(self) -> None:
        """Note, on the loop of the branches, that it turns."""
        self._turned_at = self.clock()

    @property
    def is_loop_still(self) -> bool:
        """Whether something blocks the loop: then nothing on it moves, whatever it waits for."""
        return self.clock() - self._turned_at > self.step_s

    def begin(self, branch_id: BranchId, task: asyncio.Task[object] | None = None) -> TrackedBranch:
        """Remember a delivery of a branch."""
        standing = TrackedBranch(branch_id, task, self.clock)
        self._all.add(standing)
        return standing

    def end(self, standing: TrackedBranch) -> None:
        """Forget it: it is settled, or given back."""
        self._all.discard(standing)

    def stuck(self) -> list[TrackedBranch]:
        """Return those that were left to others and are still here."""
        return [standing for standing in self._copied() if standing.is_stuck]

    def overdue(self) -> list[TrackedBranch]:
        """Return those that stand still for longer than they can explain, and are not known yet."""
        now, all_are = self.clock(), self.is_loop_still
        found = [each for each in self._copied() if not each.is_stuck]
        return found if all_are else [each for each in found if each.is_overdue(now)]

    def _copied(self) -> list[TrackedBranch]:
        while True:
            try:
                return list(self._all)
            except RuntimeError:
                # One came or went meanwhile, on the loop.
                continue


class StallWatch:
    """Finds those that are stuck: overdue at two looks, while the server answered at both.

    A server that is away, or refuses, holds up everything; what it held up moves within moments of
    its return, and so before the second look.
    """

    def __init__(self, progress: BranchTracker) -> None:
        self._progress = progress
        self._suspected: set[TrackedBranch] = set()

    def look(self) -> list[TrackedBranch]:
        """Return those that are newly stuck; called when the server has just taken a write."""
        overdue = self._progress.overdue()
        if not overdue and not self._suspected:
            return []
        found = [standing for standing in overdue if standing in self._suspected]
        for standing in found:
            standing.is_stuck = True
        self._suspected = set(overdue) - set(found)
        return found

    def forgive(self) -> None:
        """Forget all suspicion: the server was away, or refused."""
        self._suspected.clear()
