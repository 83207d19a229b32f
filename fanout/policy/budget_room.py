"""For how many branches of a job its budget is enough: a pure function of what each of them uses."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Self

import msgspec

from fanout.core.budgets import NO_AMOUNTS, Amounts, BudgetLimits

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BudgetRoom", "EachUse", "branches_within"]

# A sum of floats may be this part too large, which must not cost a branch.
_NOISE = 1e-9


class EachUse(msgspec.Struct, frozen=True, kw_only=True):
    """What a branch uses on average; each end is None if it is unknown.

    Attributes:
        low: The least.
        likely: What is likely.
        high: The most.
    """

    low: float | None
    likely: float | None
    high: float | None

    @classmethod
    def of(
        cls, low: float | None, likely: float | None, high: float | None, *, branches: int
    ) -> Self:
        """Return what each of so many branches uses that use so much together."""

        def each(total: float | None) -> float | None:
            return None if total is None or not math.isfinite(total) else total / max(1, branches)

        return cls(low=each(low), likely=each(likely), high=each(high))


class BudgetRoom(msgspec.Struct, frozen=True, kw_only=True):
    """For how many branches of a job its budget is enough.

    Attributes:
        limits: The budget.
        kept: The part of it that is kept for the reduce, as far as there are limits.
        branches: The branches of the job.
        enough_low: For how many the budget is enough if each uses the most; None if that is unknown.
        enough_likely: The same of what is likely.
        enough_high: The same of the least.
    """

    limits: BudgetLimits
    kept: Amounts = NO_AMOUNTS
    branches: int
    enough_low: int | None
    enough_likely: int | None
    enough_high: int | None


def branches_within(
    limits: BudgetLimits,
    map_limits: BudgetLimits,
    *,
    branches: int,
    each: Mapping[str, EachUse],
    most: Amounts = NO_AMOUNTS,
) -> BudgetRoom:
    """Return for how many branches a budget is enough.

    Args:
        limits: The budget.
        map_limits: What the branches may use of it.
        branches: How many there are.
        each: What each of them uses, by ``nano_usd``, ``calls`` and ``tokens``.
        most: What a call may use at most, which the last one must have room for.
    """
    limited = [name for name in each if getattr(map_limits, name) is not None]

    def enough(end: str) -> int | None:
        found = [
            _within(getattr(map_limits, name), getattr(each[name], end), getattr(most, name))
            for name in limited
        ]
        known = [one for one in found if one is not None]
        return int(min(branches, *known)) if known and len(known) == len(found) else None

    return BudgetRoom(
        limits=limits,
        kept=Amounts(
            **{
                name: getattr(limits, name) - getattr(map_limits, name)
                for name in Amounts.__struct_fields__
                if getattr(limits, name) is not None
            }
        ),
        branches=branches,
        enough_low=enough("high"),
        enough_likely=enough("likely"),
        enough_high=enough("low"),
    )


def _within(limit: int, each: float | None, most: int) -> float | None:
    """Return how many branches may begin whose calls use ``each``, while ``most`` is free."""
    if most > limit:
        return 0
    if each is None:
        return None
    if not each:
        return math.inf
    free = limit - max(most, each)
    # The last one begins while there is room for what it may use.
    return 0 if free < -_NOISE * limit else math.floor(free / each * (1 + _NOISE) + _NOISE) + 1
