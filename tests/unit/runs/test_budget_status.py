"""What is left of a budget, in words and as JSON; and a new budget for a retry."""

from __future__ import annotations

import pytest

from fanout.core.budgets import Amounts, BudgetLimits, BudgetState, BudgetStep, nano_usd_of
from fanout.core.errors import RunError, SpecError
from fanout.core.fleet_records import WorkerRecord
from fanout.core.spec import make_spec
from fanout.inputs.fences import FENCE_BYTES, RULE
from fanout.runs.budget_status import BudgetStatus, day_budgets
from fanout.runs.budgets import checked_budget, new_limits, require_kept, require_room, run_limits

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


@pytest.mark.usefixtures("server_clock")
def test_of_the_budget_of_a_day_too_calls_in_batches_are_told_from_those_of_which_nothing_is_known(
    store,
):
    limits = BudgetLimits(calls=9)
    store.worker_alive(WorkerRecord(name="w", day_budgets={"*": limits}), ttl_s=60)
    call = BudgetStep(day="*", limits=limits, call="c", amounts=Amounts(calls=2))
    store.hold_budgets([call])
    found, _ = day_budgets(store, store.workers())
    assert found["*"].day_words == (
        "2 of 9 calls spent (up to 2 calls of it by calls in batches, or of which nothing is known)"
    )


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
            "tokens.*give aggregate_max_tokens",
        ),
        (
            {
                "model": "fake",
                "split": "model",
                "split_model": "openai/unheard-of",
                "budget": {"tokens": 9},
            },
            "tokens.*give split_max_tokens",
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


# A label beside what fences, their rule and a server add to an empty document.
FENCED = 265 + FENCE_BYTES + len(RULE)
OWN = {"model": "openai/own", "price": {"input_mtok": 1, "output_mtok": 10}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "openai/gpt-5-mini", "budget": {"usd": 0.01}},
         r"usd: has no room for any call to openai/gpt-5-mini, each .* may use \$0\.2561 or more: give "),
        ({"model": "openai/gpt-5-mini", "budget": {"usd": 0.01}},
         r"usd: .* give max_tokens, or a larger budget \(got 0\.01\)"),
        ({**OWN, "max_tokens": 2000, "budget": {"usd": 0.0200001}}, r"usd: .*give a smaller max_tokens"),
        # Half the price buys it, also by a lane that may end in the realtime one.
        ({**OWN, "max_tokens": 2000, "lane": "batch", "budget": {"usd": 0.0100001}}, "usd: "),
        ({"model": "openai/gpt-5-mini", "max_tokens": 9, "budget": {"tokens": 264},
          "fence": False}, "tokens: .*265 tokens"),
        # With the fence and its rule.
        ({"model": "openai/gpt-5-mini", "max_tokens": 9, "budget": {"tokens": FENCED - 1}},
         f"tokens: .*{FENCED} tokens"),
        ({"model": "openai/gpt-5-mini", "max_tokens": 9, "system": "s", "budget": {"tokens": FENCED + 2}},
         f"tokens: .*{FENCED + 3} tokens"),
        ({"model": "fake", "prompt": "{input}" + "x" * 50, "budget": {"tokens": 50}}, "tokens: .*51 tokens"),
        ({"model": "fake", "prompt": None, "aspects": {"a": "{input}" + "x" * 50, "b": "{input}" * 9},
          "system": "é" * 10, "budget": {"tokens": 20}}, "tokens: .*21 tokens"),
        # Of several models, the dearest one.
        ({"model": None, "models": ["fake", "openai/gpt-5-mini"], "budget": {"usd": 0.01}}, "usd: .*gpt-5"),
        # A tenth is kept for the reduce, or a call of the reduce is too large.
        ({**OWN, "max_tokens": 2000, "aggregate_prompt": "{input}", "aggregate_max_tokens": 5,
          "budget": {"usd": 0.022}}, r"usd: has no room beside what is kept for the reduce for any call to"),
        ({**OWN, "max_tokens": 5, "aggregate_prompt": "{input}", "aggregate_max_tokens": 2000,
          "budget": {"usd": 0.02}}, r"usd: .*any call of the reduce .*give a smaller aggregate_max_tokens"),
    ],
)  # fmt: skip
def test_a_budget_without_room_for_a_single_call_is_refused(fields, message):
    spec = make_spec(**{"prompt": "{input}", **fields})
    with pytest.raises(SpecError, match=rf"^budget\.{message}"):
        require_room(spec, spec.budget.limits)


def test_a_prompt_that_is_wrong_is_named_as_without_a_budget():
    spec = make_spec(model="fake", aspects={"a": "{input}", "b": "{input"}, budget={"calls": 1})
    with pytest.raises(SpecError, match=r"^aspects\.b: "):
        require_room(spec, spec.budget.limits)


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "openai/gpt-5-mini", "budget": {"usd": 0.26}},
        {"model": "openai/gpt-5-mini", "budget": {"calls": 1}, "aggregate_prompt": "{input}"},
        {"model": "openai/gpt-5-mini", "max_tokens": 9, "budget": {"tokens": FENCED}},
        {**OWN, "max_tokens": 2000, "lane": "auto", "deadline_s": 9, "budget": {"usd": 0.0104}},
        {"model": "fake", "budget": {"usd": 1e-9, "tokens": 1}},
        # A model that may not be asked.
        {"model": "fake", "fallback": ["openai/gpt-5-mini"], "budget": {"usd": 0.01}},
    ],
)
def test_a_budget_with_room_for_a_call_is_taken(fields):
    spec = make_spec(prompt="{input}", **fields)
    assert require_room(spec, spec.budget.limits) is None


def test_amounts_are_shown_in_dollars():
    shown = repr(BudgetStatus.of(STATE))
    assert "limit=BudgetLimits(usd=5.0, calls=100, tokens=None)" in shown
    assert "spent=Amounts(usd=3.23, calls=41, tokens=0)" in shown
    assert "nano" not in shown
    assert BudgetStatus.of(STATE).left == {"usd": 1.77, "calls": 59}


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
    # A call has to fit beside what is spent.
    store.delete_run("r")
    run = created(store, budget={"tokens": 10}, system="x" * 9)
    store.hold_budgets([BudgetStep(run_id="r", call="c", amounts=Amounts(tokens=7))])
    with pytest.raises(
        SpecError, match=r"tokens: must be 17 tokens or more: the run has spent 7 tok"
    ):
        new_limits(store, run, checked_budget({"tokens": 16}))
    limits, _ = new_limits(store, run, checked_budget({"tokens": 17}))
    assert limits.tokens == 17
    store.delete_run("r")
    with pytest.raises(RunError, match="submitted without a budget"):
        new_limits(store, created(store), checked_budget({"calls": 7}))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "budget: must have a limit"),
        ({"usd": 0}, r"budget\.usd: .*got 0"),
        ({"usd": "much"}, r"budget\.usd: must be a number"),
        # As a job says it.
        ({"euro": 2}, r"budget\.euro: there is no such field .*known: calls, tokens, usd"),
        ({"usd": 1e-10}, r"budget\.usd: must be a billionth of a US dollar .*got 1e-10"),
        ({"calls": 0}, r"budget\.calls: must be 1 or more .*got 0"),
        (5, r"budget: "),
    ],
)
def test_what_is_no_budget_is_refused(given, message):
    with pytest.raises(SpecError, match=f"^{message}"):
        checked_budget(given)


@pytest.mark.parametrize(("tokens", "is_passed"), [(100, False), (101, True)])
def test_a_budget_that_a_provider_has_passed_says_so(tokens, is_passed):
    one = BudgetStatus(limit=BudgetLimits(tokens=100), spent=Amounts(tokens=tokens))
    assert ("passed: the provider reports more" in one.words) is is_passed
