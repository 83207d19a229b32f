"""A call that must fit into several budgets: while one has no room, nothing of the others is reserved.

A call may wait for the next day. It would else keep calls of other models from what is left to all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from fanout.core.budgets import NO_AMOUNTS, Amounts
from fanout.core.errors import LLMError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from workers.context.budget_account import BudgetAccount
    from workers.context.budget_holds import BudgetHold

__all__ = ["HeldPart", "TakenPart", "hold_all", "take_all"]


class TakenPart(NamedTuple):
    """What a call takes of one budget.

    Attributes:
        account: The budget.
        most: The most that the call can use of it.
        left: What is to be left for calls that follow it.
    """

    account: BudgetAccount
    most: Amounts
    left: Amounts = NO_AMOUNTS


class HeldPart(NamedTuple):
    """The same of a call that goes into a batch."""

    hold: BudgetHold
    most: Amounts
    left: Amounts = NO_AMOUNTS


async def take_all(parts: Sequence[TakenPart], *, is_reduce: bool) -> None:
    """Wait until a call fits into all budgets, and take its parts.

    Raises:
        LLMError: What is spent of one leaves no room for it.
        CallStoppedError: The run or this worker stops.
    """
    for part in parts:
        part.account.require_room(part.most, is_reduce=is_reduce, left=part.left)
    full = await _take_each(parts, None, is_reduce=is_reduce)
    while full is not None:
        others = [part for part in parts if part is not full]
        full = await _take_each([full, *others], full, is_reduce=is_reduce)


async def _take_each(
    parts: Iterable[TakenPart], awaited: TakenPart | None, *, is_reduce: bool
) -> TakenPart | None:
    """Take parts, with a wait for one of them; return the one without room now, with nothing taken."""
    taken: list[TakenPart] = []
    try:
        for part in parts:
            is_taken = await part.account.take(
                part.most, is_reduce=is_reduce, left=part.left, waits=part is awaited
            )
            if not is_taken:
                _give_back(taken)
                return part
            taken.append(part)
    except BaseException:
        _give_back(taken)
        raise
    return None


def _give_back(parts: Iterable[TakenPart]) -> None:
    for account, most, _ in parts:
        account.settle(most, NO_AMOUNTS)


async def hold_all(parts: Sequence[HeldPart], item: str, *, is_reduce: bool) -> None:
    """Wait until a call of a batch fits into all budgets, and hold its parts under its name.

    Raises:
        LLMError: What is spent or reserved of one leaves no room for it.
        CallStoppedError: The run is gone, or this worker stops.
    """
    full = await _hold_each(parts, None, item, is_reduce=is_reduce)
    while full is not None:
        others = [part for part in parts if part is not full]
        full = await _hold_each([full, *others], full, item, is_reduce=is_reduce)


async def _hold_each(
    parts: Iterable[HeldPart], awaited: HeldPart | None, item: str, *, is_reduce: bool
) -> HeldPart | None:
    """Hold parts, with a wait for one of them; return the one without room now, with nothing held."""
    held: list[HeldPart] = []
    try:
        for part in parts:
            is_held = await part.hold.take(
                item, part.most, is_reduce=is_reduce, left=part.left, waits=part is awaited
            )
            if not is_held:
                await _end(held, item)
                return part
            held.append(part)
    except LLMError:
        # Otherwise there is another delivery, which holds the same.
        await _end(held, item)
        raise
    return None


async def _end(parts: Iterable[HeldPart], item: str) -> None:
    for hold, _, _ in parts:
        await hold.end(item, NO_AMOUNTS, insists=False)
