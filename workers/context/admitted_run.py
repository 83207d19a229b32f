"""What a worker process knows of a run whose branches wait for admission."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

__all__ = ["AdmittedRun"]


class AdmittedRun:
    """The branches of one run in this process, and its permits here."""

    def __init__(self, run_id: str, max_workers: int | None, weight: float) -> None:
        self.run_id = run_id
        self.max_workers = max_workers
        self.is_capped = max_workers is not None
        self.weight = weight
        self.in_use = 0
        # Those that come back for a call, in turn, before those that have not begun.
        self.waiting: deque[asyncio.Future[None]] = deque()
        self._back = 0
        # The permits of this process, until when they are surely its own, and how many it should
        # have while other processes wait for some.
        self.granted = 0
        self.sure_until = 0.0
        self.level = 0
        # Since when it has had some, and how many permits the last reply lacked.
        self.since = 0.0
        self.is_short = False
        # Whether the last request failed.
        self.has_failed = False
        # Whether it leaves its only permit to another process for now.
        self.yields = False
        # Since when places lack for its permits, while others wait for these.
        self.placeless_since: float | None = None
        # Whether it asked for no more, as there was no place, and whether there was one since.
        self.lacks_place = False
        self.had_place = False
        # Whether its permits are reported, and when it has something to ask before the next report
        # of all runs.
        self.is_kept = False
        self.due_at = math.inf
        # Since when permits are idle here, and since when some lack.
        self.idle_since: float | None = None
        self.short_since: float | None = None
        # The time until which it leaves permits to others.
        self.rests_until = 0.0

    @property
    def branches(self) -> int:
        """Those in flight and those that wait."""
        return self.in_use + len(self.waiting)

    def add(self, future: asyncio.Future[None], *, is_back: bool) -> None:
        """Let a branch wait."""
        if is_back:
            self.waiting.insert(self._back, future)
            self._back += 1
        else:
            self.waiting.append(future)

    def pop(self) -> asyncio.Future[None]:
        """Return the next one that waits."""
        self._back = max(0, self._back - 1)
        return self.waiting.popleft()

    def drop(self, future: asyncio.Future[None]) -> None:
        """Forget one, if it still waits."""
        if future in self.waiting:
            place = self.waiting.index(future)
            self._back -= place < self._back
            del self.waiting[place]

    def clear(self) -> None:
        """Forget all that wait."""
        self.waiting.clear()
        self._back = 0

    def may_begin(self, clock: Callable[[], float]) -> bool:
        """Return whether it has a permit for a further branch."""
        return self.max_workers is None or (
            self.in_use < self.granted and clock() < self.sure_until
        )
