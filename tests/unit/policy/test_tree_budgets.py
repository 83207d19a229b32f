"""What a call of a tree leaves of a budget for those above it."""

from __future__ import annotations

import pytest

from fanout.core.budgets import Amounts
from fanout.policy.tree_budgets import above_columns, above_of, calls_above, kept_above


@pytest.mark.parametrize(
    ("nodes", "per_call", "expected"),
    [
        (1, 10, (1, 1)), (2, 10, (1, 1)), (10, 10, (1, 1)), (11, 10, (3, 2)), (100, 10, (11, 2)),
        (101, 10, (14, 3)), (8, 2, (7, 3)), (9, 1, (5 + 3 + 2 + 1, 4)),
    ],
)  # fmt: skip
def test_the_calls_above_a_level_fold_what_it_has(nodes, per_call, expected):
    assert calls_above(nodes, room_tokens=per_call * 50 + 3, partial_tokens=20) == expected


def test_a_prompt_shows_two_partial_results_at_least():
    assert calls_above(3, room_tokens=10, partial_tokens=1_000) == (3, 2)
    assert calls_above(3, room_tokens=80, partial_tokens=0) == (1, 1)


def test_all_calls_are_left_and_the_money_of_one_at_each_level():
    most = Amounts(nano_usd=5, calls=1, tokens=100)
    left = kept_above(most, calls_above(100, room_tokens=400, partial_tokens=10))
    assert left == Amounts(nano_usd=10, calls=11, tokens=200)


def test_a_node_says_what_is_above_it():
    above = calls_above(11, room_tokens=400, partial_tokens=10)
    assert above_of({"group": "", **above_columns(above)}) == above
    assert above_of({"group": ""}) is None
