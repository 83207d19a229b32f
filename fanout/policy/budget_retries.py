"""What a retry keeps of a budget for the reduce: what that needs, as the run before has shown."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from fanout.core.budgets import Amounts, BudgetLimits, nano_usd_of

if TYPE_CHECKING:
    from fanout.core.records import Usage

__all__ = ["ShownUse", "limited_use", "limits_of_retry"]

# The values of further answers may need more comparisons than those so far.
_SAFETY = 1.5
_NAMES = Amounts.__struct_fields__


class ShownUse(msgspec.Struct, frozen=True, kw_only=True):
    """What a run has used that has ended with an aggregate.

    Attributes:
        spent: All of it, retries before included.
        branches: What the calls of its branches used.
        reduce: What the calls of its last reduce used.
        most: The most that a call of the reduce may use.
        answers: How many answers there are.
        failed: How many branches are to be processed again.
        is_by_pairs: Whether the reduce compares answers by two, so that it grows with the square.
    """

    spent: Amounts
    branches: Amounts
    reduce: Amounts
    most: Amounts
    answers: int
    failed: int
    is_by_pairs: bool


def limited_use(usage: Usage, limits: BudgetLimits) -> Amounts | None:
    """Return what calls have used of what a budget limits, and 0 of the rest; None if that is unknown.

    A budget of calls needs no price.
    """
    cost_usd, read, written = usage.cost_usd, usage.input_tokens, usage.output_tokens
    if limits.nano_usd is not None and cost_usd is None:
        return None
    if limits.tokens is not None and (read is None or written is None):
        return None
    return Amounts(
        nano_usd=nano_usd_of(cost_usd or 0.0),
        calls=usage.calls,
        tokens=(read or 0) + (written or 0),
    )


def limits_of_retry(limits: BudgetLimits, of_map: BudgetLimits, shown: ShownUse) -> BudgetLimits:
    """Return what the branches may use where the reduce needs less than what is kept for it.

    It is no less than before. So many branches are made room for that what they use and what the reduce
    then needs fit into what is left.

    Args:
        limits: The budget.
        of_map: What the branches may use of it so far.
        shown: What the run has used.
    """
    if not shown.answers or not shown.reduce.calls:
        return of_map
    limited = [name for name in _NAMES if getattr(limits, name) is not None]

    def has_room(more: int) -> bool:
        return all(
            getattr(shown.spent, name) + _of_branches(shown, name, more) + _need(shown, name, more)
            <= getattr(limits, name)
            for name in limited
        )

    low, high = 0, shown.failed
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if has_room(middle) else (low, middle - 1)
    return BudgetLimits(
        **{
            name: max(getattr(of_map, name), getattr(limits, name) - _need(shown, name, low))
            for name in limited
        }
    )


def _of_branches(shown: ShownUse, name: str, more: int) -> float:
    return more * float(getattr(shown.branches, name)) / shown.answers


def _need(shown: ShownUse, name: str, more: int) -> int:
    """Return what the reduce needs with so many further answers."""
    growth = (shown.answers + more) / shown.answers
    growth = growth**2 if shown.is_by_pairs else growth
    used: int = getattr(shown.reduce, name)
    most: int = getattr(shown.most, name)
    return math.ceil(_SAFETY * growth * used) + most
