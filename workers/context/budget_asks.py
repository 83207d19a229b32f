"""The calls of a process that wait for their part of a budget."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.core.budgets import Amounts

__all__ = ["Ask", "Asks"]

# Calls that one report asks for: a script blocks the server while it runs.
_AT_ONCE = 100


class Ask:
    """A call that waits for its part of a budget.

    Attributes:
        most: The most that it can use.
        is_reduce: Whether it is of the reduce.
        left: What is to be left for calls that follow it.
        waits: Whether it waits for room; if not, it is told once that there is none.
        granted: Whether it has its part.
    """

    __slots__ = ("granted", "is_reduce", "left", "most", "waits")

    def __init__(self, most: Amounts, *, is_reduce: bool, left: Amounts, waits: bool) -> None:
        self.most = most
        self.is_reduce = is_reduce
        self.left = left
        self.waits = waits
        self.granted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def ends(self, *, is_granted: bool) -> bool:
        """Tell its branch; return False if that was stopped meanwhile."""
        if self.granted.done():
            return False
        self.granted.set_result(is_granted)
        return True

    def fails(self, problem: BaseException) -> None:
        """Have its branch raise an error."""
        if not self.granted.done():
            self.granted.set_exception(problem)


class Asks:
    """What waits, in the order in which it came, and what of it is still to be asked for."""

    def __init__(self) -> None:
        self._waiting: dict[Ask, None] = {}
        # The part of them that was not asked for since the last look at all of them began.
        self._new: dict[Ask, None] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __iter__(self) -> Iterator[Ask]:
        return iter(self._waiting)

    @property
    def has_new(self) -> bool:
        """Whether some are to be asked for at once."""
        return bool(self._new)

    def add(self, ask: Ask) -> None:
        """Add a call that is to be asked for at once."""
        self._waiting[ask] = self._new[ask] = None

    def drop(self, ask: Ask) -> None:
        """Let one go, if it is there."""
        self._waiting.pop(ask, None)
        self._new.pop(ask, None)

    def clear(self) -> list[Ask]:
        """Let all go; return them."""
        dropped = list(self._waiting)
        self._waiting, self._new = {}, {}
        return dropped

    def next(self, *, is_due: bool) -> tuple[Ask, ...]:
        """Return what the next report asks for: the oldest of those that were not asked for.

        If there is room for others beside them, these are before them, as they have waited longer.

        Args:
            is_due: Whether it is time to ask for all of them again.
        """
        if len(self._waiting) <= _AT_ONCE:
            self._new.clear()
            return tuple(self._waiting)
        if is_due and not self._new:
            self._new = dict(self._waiting)
        asked = list(islice(self._new, _AT_ONCE))
        others = (ask for ask in self._waiting if ask not in self._new)
        longer = list(islice(others, _AT_ONCE - len(asked)))
        for ask in asked:
            del self._new[ask]
        return (*longer, *asked)
