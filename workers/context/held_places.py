"""The place of a branch while it waits for its next call: others get it if the wait is long.

Two things are taken in turn: a place of the process, and room for a call among those that the model takes,
or in a budget. Who has one of them and waits for the other must not wait for ever: a branch that waits for
room leaves its place soon, at the latest when one that has room needs a place.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache
from itertools import takewhile
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["KEEPS_PLACE_S", "RETURNS_S", "HeldPlace", "LongWait"]

# Seconds for which a branch that waits for a limit, or for its next attempt, keeps its place.
KEEPS_PLACE_S = 0.25
# Seconds that a branch waits for a place which has room for its first call. While a limit was narrow, this
# process took more branches than it has places: others of the fleet may have some for them now.
RETURNS_S = 1.0


class HeldPlace(Protocol):
    """The place of a branch."""

    @property
    def is_away(self) -> bool:
        """Whether the branch has left it until its next call."""

    def leaves_place(self, *, in_outage: bool = False) -> bool:
        """Leave it until the next call; return whether there is no need to ask again.

        In an outage it is left only to a branch that comes back for its call: others that begin in it
        would wait as well.
        """

    async def takes_place(self, *, has_called: bool = True) -> None:
        """Wait for a place again; one that has not ``has_called`` may go back to the queue meanwhile."""


class LongWait:
    """A wait during which ``leaves`` is called from time to time, until it returns True."""

    __slots__ = ("_leaves", "_waits")

    def __init__(self, leaves: Callable[[], bool] | None) -> None:
        self._leaves = leaves
        self._waits: _Waits | None = None

    def __enter__(self) -> None:
        if self._leaves is not None:
            self._waits = _waits_on(asyncio.get_running_loop())
            self._waits.add(self)

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if self._waits is not None:
            self._waits.drop(self)

    def is_over(self) -> bool:
        """Call ``leaves``; return whether it need not be called again."""
        return self._leaves is None or self._leaves()


class _Waits:
    """The waits on one loop. They share a timer: nearly all are over long before it is due."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # When each is asked next, in this order.
        self._due: dict[LongWait, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, wait: LongWait) -> None:
        """Ask a wait after a while."""
        self._due[wait] = self._loop.time() + KEEPS_PLACE_S
        if self._timer is None:
            self._ask_later()

    def drop(self, wait: LongWait) -> None:
        """Ask a wait no more."""
        self._due.pop(wait, None)

    def _ask(self) -> None:
        self._timer, now = None, self._loop.time()
        due = list(takewhile(lambda wait: self._due[wait] <= now, self._due))
        try:
            for wait in due:
                # Who leaves may end the wait of another one.
                if self._due.pop(wait, None) is not None and not wait.is_over():
                    self.add(wait)
        finally:
            self._ask_later()

    def _ask_later(self) -> None:
        if self._timer is None and self._due:
            self._timer = self._loop.call_at(next(iter(self._due.values())), self._ask)


# A process has one loop for its calls.
_waits_on = lru_cache(maxsize=4)(_Waits)
