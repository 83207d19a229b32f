"""Refuses a call that never fits into a budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.core.budgets import NO_AMOUNTS, Amounts
from fanout.core.errors import LLMError
from fanout.core.records import ErrorKind
from fanout.policy.budgets import fits, over_budget, too_large

if TYPE_CHECKING:
    from fanout.core.budgets import BudgetState

__all__ = ["require_fit"]


def require_fit(
    most: Amounts,
    state: BudgetState,
    *,
    is_reduce: bool,
    day: str,
    left: Amounts = NO_AMOUNTS,
) -> None:
    """Raise LLMError if a call never fits: into the budget of a day, also on no other day.

    Args:
        most: The most that it can use.
        state: The budget.
        is_reduce: Whether it is of the reduce.
        day: The name of the budget of a day, or empty.
        left: What is to be left for calls that follow it.
    """
    if day:
        budget, is_over = f"the workers' budget of a day for {day}", too_large
    else:
        budget, is_over = "the run's budget", _never_fits
    if is_over(most + left, state, is_reduce=is_reduce):
        # The run goes on: only an account without money stops it.
        message = over_budget(most, state, is_reduce=is_reduce, budget=budget, left=left)
        raise LLMError(ErrorKind.BUDGET, message, stop_after=0)


def _never_fits(most: Amounts, state: BudgetState, *, is_reduce: bool) -> bool:
    limits = state.limits if is_reduce else state.map_limits
    return not fits(most, used=state.used, limits=limits)
