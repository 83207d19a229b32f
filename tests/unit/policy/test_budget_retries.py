"""What a retry keeps of a budget for the reduce."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from fanout.core.budgets import NO_AMOUNTS, Amounts, BudgetLimits
from fanout.core.records import Usage
from fanout.policy.budget_retries import ShownUse, limited_use, limits_of_retry

# Half of it is kept for a reduce that needed 4 calls for 50 answers.
LIMITS, OF_MAP = BudgetLimits(calls=100), BudgetLimits(calls=50)
SHOWN = ShownUse(
    spent=Amounts(calls=54), branches=Amounts(calls=50), reduce=Amounts(calls=4),
    most=Amounts(calls=1), answers=50, failed=60, is_by_pairs=True,
)  # fmt: skip


def test_a_retry_keeps_for_the_reduce_what_it_will_need_and_leaves_the_rest_to_the_branches():
    found = limits_of_retry(LIMITS, OF_MAP, SHOWN).calls
    # 54 are spent; 29 further branches, 1.5 times 4 calls for 79 answers by two, and one that is safe.
    assert found == 100 - (15 + 1)
    assert found - 54 >= 29
    by_tree = limits_of_retry(LIMITS, OF_MAP, replace(SHOWN, is_by_pairs=False)).calls
    assert found < by_tree < 100


@pytest.mark.parametrize(
    "shown",
    [
        replace(SHOWN, reduce=NO_AMOUNTS),
        replace(SHOWN, answers=0),
        replace(SHOWN, reduce=Amounts(calls=40), spent=Amounts(calls=90)),
    ],
)
def test_it_never_keeps_more_than_the_share_and_none_less_of_what_is_not_known(shown):
    assert limits_of_retry(LIMITS, OF_MAP, shown) == OF_MAP


@pytest.mark.parametrize("failed", [0, 1, 10])
def test_few_branches_leave_the_reduce_all_that_they_do_not_use(failed):
    found = limits_of_retry(LIMITS, OF_MAP, replace(SHOWN, failed=failed))
    growth = (50 + failed) / 50
    assert found.calls == 100 - (-int(-(1.5 * growth**2 * 4) // 1) + 1)


UNPRICED = Usage(calls=3, input_tokens=20, output_tokens=10, cost_usd=None)
UNKNOWN = Usage(calls=3, input_tokens=None, output_tokens=10, cost_usd=1e-9)


@pytest.mark.parametrize(
    ("usage", "limits", "expected"),
    [
        (UNPRICED, BudgetLimits(calls=9), Amounts(calls=3, tokens=30)),
        (UNPRICED, BudgetLimits(tokens=9), Amounts(calls=3, tokens=30)),
        (UNPRICED, BudgetLimits(calls=9, nano_usd=9), None),
        (UNKNOWN, BudgetLimits(nano_usd=9), Amounts(nano_usd=1, calls=3, tokens=10)),
        (UNKNOWN, BudgetLimits(tokens=9), None),
    ],
)
def test_only_what_is_limited_must_be_known(usage, limits, expected):
    assert limited_use(usage, limits) == expected


def test_each_limit_is_kept_for():
    both = BudgetLimits(calls=100, tokens=10_000)
    shown = replace(
        SHOWN, spent=Amounts(calls=54, tokens=9_900), reduce=Amounts(calls=4, tokens=40)
    )
    found = limits_of_retry(both, BudgetLimits(calls=50, tokens=5_000), shown)
    assert (found.nano_usd, found.tokens) == (None, 10_000 - 99)
