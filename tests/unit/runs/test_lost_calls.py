"""The usage of a run whose budget knows of calls that no outcome has."""

from __future__ import annotations

import pytest

from fanout.core.budgets import Amounts, BudgetState
from fanout.core.records import NO_CALL, Usage
from fanout.core.units import cost_of
from fanout.runs.lost_calls import with_lost_calls

NINE = Usage(
    calls=9, input_tokens=70, cached_input_tokens=0, cache_write_tokens=0, output_tokens=7,
    reasoning_tokens=0, cost_usd=1.25,
)  # fmt: skip
ONE = Amounts(nano_usd=500, calls=1, tokens=3)
SPENT = Amounts(nano_usd=9_000, calls=9, tokens=77)
NONE = Amounts()


@pytest.mark.parametrize(
    ("spent", "unsure", "held", "fields", "is_lost"),
    [
        (SPENT, NONE, NONE, {}, False),
        (SPENT, NONE, ONE, {}, False),
        (SPENT, ONE, NONE, {}, True),
        # What a batch holds has not ended.
        (SPENT, ONE, NONE, {"is_batched": True}, False),
        (SPENT, ONE, NONE, {"has_ended": True}, True),
        (SPENT, NONE, ONE, {"has_ended": True}, True),
        # Its use is reported in a moment.
        (SPENT - ONE, NONE, ONE, {"has_ended": True}, False),
        (SPENT - ONE, ONE, ONE, {"has_ended": True}, True),
        # It was reported, but its worker died before the outcome.
        (SPENT + ONE, NONE, NONE, {"has_ended": True}, True),
        (SPENT + ONE, NONE, NONE, {}, False),
    ],
)
def test_sums_are_the_least_where_calls_are_lost(spent, unsure, held, fields, is_lost):
    state = BudgetState(spent=spent, unsure=unsure, held=held)
    found = with_lost_calls(NINE, state, **{"has_ended": False, "is_batched": False, **fields})
    if not is_lost:
        assert found is NINE
        return
    assert cost_of(found) == "at least $1.25"
    assert (found.cost_usd, found.input_tokens, found.output_tokens) == (None, None, None)
    assert found.at_least == {"input_tokens": 70, "output_tokens": 7, "cost_usd": 1.25}
    assert found.calls == 9


def test_without_any_other_call_nothing_is_known_and_what_costs_nothing_still_does():
    lost = BudgetState(unsure=ONE)
    assert cost_of(with_lost_calls(NO_CALL, lost, has_ended=False, is_batched=False)) == "?"
    free = BudgetState(unsure=Amounts(calls=1, tokens=3))
    found = with_lost_calls(NO_CALL, free, has_ended=False, is_batched=False)
    assert (found.cost_usd, found.input_tokens) == (0.0, None)
