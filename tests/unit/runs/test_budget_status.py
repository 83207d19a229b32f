"""What is left of a budget, in words and as JSON; and a new budget for a retry."""

from __future__ import annotations

import pytest

from fanout.core.budgets import Amounts, BudgetLimits, BudgetState, BudgetStep, nano_usd_of
from fanout.core.errors import RunError, SpecError
from fanout.core.spec import make_spec
from fanout.runs.budget_status import BudgetStatus
from fanout.runs.budgets import checked_budget, new_limits, require_kept, run_limits

STATE = BudgetState(
    limits=BudgetLimits.of(usd=5.0, calls=100),
    spent=Amounts(nano_usd=nano_usd_of(3.21), calls=40),
    unsure=Amounts(nano_usd=nano_usd_of(0.02), calls=1),
    held=Amounts(nano_usd=nano_usd_of(0.5), calls=5),
)


def test_it_says_what_is_spent_of_what_and_of_what_nothing_is_known():
    now = BudgetStatus.of(STATE)
    assert now.words == (
        "budget: $3.23 of $5.00, 41 of 100 calls spent (up to $0.02, 1 call of it by calls of which "
        "nothing is known)"
    )
    assert now.left_words == "$1.77, 59 calls"
    assert now.to_dict() == {
        "limit": {"usd": 5.0, "calls": 100},
        "spent": {"usd": 3.23, "calls": 41},
        "unsure": {"usd": 0.02, "calls": 1},
        "reserved": {"usd": 0.5, "calls": 5},
        "left": {"usd": 1.77, "calls": 59},
    }
    assert now.fullest == "usd"


def test_after_the_end_of_a_run_no_call_is_in_flight():
    ended = BudgetStatus.of(STATE, has_ended=True)
    assert (ended.spent.usd, ended.unsure.calls, ended.reserved.calls) == (3.73, 6, 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "openai/unheard-of", "budget": {"usd": 1}}, "usd.*price of openai/unheard-of"),
        (
            {"model": "fake", "fallback": ["openai/unheard-of"], "budget": {"usd": 1}},
            "usd.*price of openai/unheard-of",
        ),
        ({"model": "openai/unheard-of", "budget": {"tokens": 9}}, "tokens.*give max_tokens"),
        (
            {
                "model": "openai/unheard-of",
                "max_tokens": 5,
                "aggregate_prompt": "{input}",
                "budget": {"tokens": 9},
            },
            "tokens.*give max_tokens",
        ),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused_with_what_to_give(fields, message):
    spec = make_spec(prompt="{input}", **fields)
    with pytest.raises(SpecError, match=rf"^budget\.{message}"):
        require_kept(spec, spec.budget.limits)


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "openai/unheard-of", "budget": {"calls": 1}},
        {"model": "openai/gpt-5-mini", "budget": {"usd": 1, "tokens": 9}},
        {"model": "local", "budget": {"usd": 1, "tokens": 9}},
        {
            "model": "openai/unheard-of",
            "max_tokens": 5,
            "price": {"input_mtok": 1, "output_mtok": 2},
            "budget": {"usd": 1, "tokens": 9},
        },
    ],
)
def test_a_budget_that_can_be_kept_is_taken(fields):
    spec = make_spec(prompt="{input}", **fields)
    assert require_kept(spec, spec.budget.limits) is None


def created(store, **fields):
    spec = make_spec(model="fake", prompt="{input}", **fields)
    store.create_run("r", spec=spec.model_dump_json(), created_at=1.0, budget=run_limits(spec))
    return store.run("r")


def test_a_new_budget_replaces_the_limits_that_it_gives(store):
    run = created(store, budget={"usd": 5, "calls": 10}, aggregate_prompt="{input}")
    limits, of_map = new_limits(store, run, checked_budget({"calls": 20}))
    assert limits == BudgetLimits.of(usd=5.0, calls=20)
    assert of_map == BudgetLimits.of(usd=4.5, calls=18)


def test_a_new_budget_without_room_or_for_a_run_without_one_is_refused(store):
    run = created(store, budget={"calls": 10})
    store.hold_budgets([BudgetStep(run_id="r", call="c", amounts=Amounts(calls=7))])
    with pytest.raises(SpecError, match=r"^budget\.calls: must be more than the 7 calls .*got 7"):
        new_limits(store, run, checked_budget({"calls": 7}))
    store.delete_run("r")
    with pytest.raises(RunError, match="submitted without a budget"):
        new_limits(store, created(store), checked_budget({"calls": 7}))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "budget: must have a limit"),
        ({"usd": 0}, r"budget\.usd: .*got 0"),
        ({"usd": "much"}, r"budget\.usd: must be a number"),
        ({"dollars": 1}, r"budget\.dollars"),
    ],
)
def test_what_is_no_budget_is_refused(given, message):
    with pytest.raises(SpecError, match=f"^{message}"):
        checked_budget(given)
