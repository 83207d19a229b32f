"""For how many branches a budget is enough."""

from __future__ import annotations

import math

import pytest

from fanout.core.budgets import Amounts, BudgetLimits
from fanout.policy.budget_room import EachUse, branches_within


def room(limits, *, of_map=None, branches=100, most=Amounts(), **each):  # noqa: B008 - it is frozen
    limits = BudgetLimits(**limits)
    uses = {name: EachUse.of(*ends, branches=10) for name, ends in each.items()}
    for name in ("nano_usd", "calls", "tokens"):
        uses.setdefault(name, EachUse.of(None, None, None, branches=1))
    of_map = limits if of_map is None else BudgetLimits(**of_map)
    found = branches_within(limits, of_map, branches=branches, each=uses, most=most)
    return found.enough_low, found.enough_likely, found.enough_high


@pytest.mark.parametrize(
    ("limits", "each", "found"),
    [
        ({"calls": 50}, {"calls": (10, 10, 10)}, (50, 50, 50)),
        ({"calls": 50}, {"calls": (10, 20, 50)}, (10, 25, 50)),
        ({"calls": 500}, {"calls": (10, 10, 10)}, (100, 100, 100)),
        ({"calls": 0}, {"calls": (10, 10, 10)}, (0, 0, 0)),
        ({"calls": 50}, {"calls": (10, 10, math.inf)}, (None, 50, 50)),
        ({"nano_usd": 7}, {"nano_usd": (0, 10, None)}, (None, 7, 100)),
        ({"nano_usd": 7, "calls": 5}, {"nano_usd": (1, 10, 70), "calls": (10, 10, 10)}, (1, 5, 5)),
    ],
)
def test_what_each_branch_uses_says_for_how_many_a_budget_is_enough(limits, each, found):
    assert room(limits, **each) == found


def test_the_last_branch_needs_room_for_the_most_that_its_call_may_use():
    each = {"tokens": (100, 100, 100)}
    assert room({"tokens": 100}, **each) == (10, 10, 10)
    assert room({"tokens": 100}, **each, most=Amounts(tokens=55)) == (5, 5, 5)
    assert room({"tokens": 100}, **each, most=Amounts(tokens=101)) == (0, 0, 0)


def test_what_is_kept_for_the_reduce_is_not_for_branches():
    each = {"calls": (10, 10, 10)}
    assert room({"calls": 50}, of_map={"calls": 40}, **each) == (40, 40, 40)
