"""For how many branches of a job its budget is enough, as an estimate or a trial says it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fanout.core.budgets import NANO
from fanout.core.units import plural
from fanout.policy.budget_room import EachUse, branches_within
from fanout.runs.budget_status import amount_words
from fanout.runs.budgets import least_of_branch, run_limits

if TYPE_CHECKING:
    from fanout.core.budgets import Amounts, BudgetLimits
    from fanout.core.spec import RunSpec
    from fanout.policy.budget_room import BudgetRoom

    Ends = tuple[float | None, float | None, float | None]

__all__ = ["budget_room", "room_dict", "room_words"]

_NAMES = ("usd", "calls", "tokens")


def budget_room(
    spec: RunSpec, *, branches: int, used_by: int, usd: Ends, calls: Ends, tokens: Ends
) -> BudgetRoom | None:
    """Return for how many branches of a job its budget is enough; None without a budget.

    Args:
        spec: The job.
        branches: How many branches it has.
        used_by: How many branches use what follows together.
        usd: The US dollars: the least, what is likely, the most; each is None if it is unknown.
        calls: The same for calls.
        tokens: The same for tokens of prompts and answers.
    """
    limits = run_limits(spec)
    if limits is None:
        return None
    low, likely, high = (None if one is None else one * NANO for one in usd)
    ends = {"nano_usd": (low, likely, high), "calls": calls, "tokens": tokens}
    return branches_within(
        *limits,
        branches=branches,
        each={name: EachUse.of(*some, branches=used_by) for name, some in ends.items()},
        most=least_of_branch(spec),
    )


def room_words(room: BudgetRoom) -> str:
    """Return for how many branches a budget is enough, as one text."""
    low, likely, high = room.enough_low, room.enough_likely, room.enough_high
    total = plural(room.branches, "branch", "branches")
    text = f"the budget of {_amounts(room.limits)}"
    if likely is None:
        text = f"{text}: for how many branches it is enough is unknown"
    elif likely < room.branches:
        text = f"{text} is enough for about {likely:,} of {total}{_ends(low, high)}"
    elif low is None or low < room.branches:
        least = "" if low is None else f" (for {low:,} at least)"
        text = f"{text} is likely enough for all {total}{least}"
    else:
        text = f"{text} is enough for all {total}"
    kept = _amounts(room.kept, room.limits)
    return f"{text}, with {kept} of it kept for the reduce" if kept else text


def room_dict(room: BudgetRoom | None) -> dict[str, Any] | None:
    """Return the same as JSON values; None without a budget."""
    if room is None:
        return None
    names = [name for name in _NAMES if getattr(room.limits, name) is not None]
    return {
        "limit": {name: getattr(room.limits, name) for name in names},
        "kept": {name: getattr(room.kept, name) for name in names},
        "branches": room.branches,
        "enough_low": room.enough_low,
        "enough_likely": room.enough_likely,
        "enough_high": room.enough_high,
    }


def _ends(low: int | None, high: int | None) -> str:
    if low is None or high is None:
        return "" if high is None else f" ({high:,} at most)"
    return "" if low == high else f" ({low:,} to {high:,})"


def _amounts(of: Amounts | BudgetLimits, limits: BudgetLimits | None = None) -> str:
    """Return amounts as one text: those that are limited, and not 0."""
    some = [
        amount_words(name, getattr(of, name))
        for name in _NAMES
        if getattr(limits or of, name) is not None and getattr(of, name)
    ]
    return ", ".join(some)
