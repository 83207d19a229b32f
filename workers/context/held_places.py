"""The place of a branch while it waits for its next call: others get it if the wait is long.

Two things are taken in turn: a place of the process, and room for a call among those that the model takes,
or in a budget. Who has one of them and waits for the other must not wait for ever: a branch that waits for
room leaves its place soon, at the latest when one that has room needs a place.
"""

from __future__ import annotations

import asyncio
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

    def __init__(self, leaves: Callable[[], bool] | None) -> None:
        self._leaves = leaves
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        if self._leaves is not None:
            self._ask_later(self._leaves)

    def _ask_later(self, leaves: Callable[[], bool]) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(KEEPS_PLACE_S, self._ask, leaves)

    def _ask(self, leaves: Callable[[], bool]) -> None:
        self._timer = None
        if not leaves():
            self._ask_later(leaves)

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
