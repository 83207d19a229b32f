"""A line of calls that wait for the same model: its runs take turns by their weights."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["ANYBODY", "FairLine", "FairLock", "Turn"]


class Turn(NamedTuple):
    """Whose call it is: the run, and its weight among others."""

    run_id: str
    weight: float = 1.0


ANYBODY = Turn("")


class FairLine:
    """Futures that wait, the first of each run in turn; used on one loop."""

    def __init__(self) -> None:
        self._lines: dict[Turn, deque[asyncio.Future[None]]] = {}
        # What each of these runs has had, by its weight; and what the last one that was served had.
        self._had: dict[Turn, float] = {}
        self._served = 0.0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, turn: Turn) -> asyncio.Future[None]:
        """Return the future of a call, at the end of those of its run."""
        line = self._lines.get(turn)
        if line is None:
            line = self._lines[turn] = deque()
            self._had[turn] = self._served + 1 / turn.weight
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.append(future)
        self._count += 1
        return future

    def pop(self) -> asyncio.Future[None]:
        """Return the next future. Raises ValueError if there is none."""
        turn = min(self._had, key=self._had.__getitem__)
        future = self._lines[turn].popleft()
        self._served = self._had[turn]
        self._had[turn] += 1 / turn.weight
        self._left(turn)
        return future

    def remove(self, turn: Turn, future: asyncio.Future[None]) -> None:
        """Remove a future, if it still waits."""
        line = self._lines.get(turn)
        if line is not None and future in line:
            line.remove(future)
            self._left(turn)

    def _left(self, turn: Turn) -> None:
        self._count -= 1
        if not self._lines[turn]:
            del self._lines[turn], self._had[turn]


class FairLock:
    """A lock that goes to the next call of the line."""

    def __init__(self) -> None:
        self._line = FairLine()
        self._is_held = False

    @asynccontextmanager
    async def held(self, turn: Turn) -> AsyncIterator[None]:
        """Wait for the lock, and hold it."""
        await self._take(turn)
        try:
            yield
        finally:
            self._release()

    async def _take(self, turn: Turn) -> None:
        if not self._is_held:
            self._is_held = True
            return
        future = self._line.add(turn)
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self._release()
            else:
                self._line.remove(turn, future)
            raise

    def _release(self) -> None:
        while self._line:
            future = self._line.pop()
            if not future.done():
                future.set_result(None)
                return
        self._is_held = False
