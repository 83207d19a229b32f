"""The kinds of calls of a job: who is asked, with which limits, and what that says of its money."""

from typing import Any

import pytest

from fanout.core.asks import asks_of, first_models
from fanout.core.budgets import BudgetLimits
from fanout.core.errors import SpecError
from fanout.core.spec import make_spec
from fanout.llm.call_bounds import unkept
from fanout.llm.enforcement import unenforced
from fanout.runs.budgets import require_room

STEPS: list[dict[str, Any]] = [
    {"name": "kind", "prompt": "{input}", "choices": ["bill", "letter"], "max_tokens": 5},
    {"name": "facts", "prompt": "F {input}", "model": "openai/gpt-4.1", "when": {"kind": "bill"},
     "schema": {"type": "object", "properties": {"day": {"type": "string", "minLength": 1}}}},
    {"name": "due", "function": "a:b"},
    {"name": "note", "prompt": "N {facts}", "system": "Short.", "max_tokens": 9},
    {"name": "check", "judge": "note", "criteria": "polite", "model": "openai/gpt-4.1-mini"},
]  # fmt: skip


def steps(**fields):
    return make_spec(
        **{"model": "openai/gpt-5-mini", "steps": STEPS, "system": "S", "max_tokens": 70, **fields}
    )


def test_each_step_has_its_models_system_prompt_and_limit():
    found = [(one.step.name, one.models, one.system, one.max_tokens) for one in asks_of(steps())]
    assert found == [
        ("kind", ("openai/gpt-5-mini",), "S", 5),
        ("facts", ("openai/gpt-4.1",), "S", 70),
        ("note", ("openai/gpt-5-mini",), "Short.", 9),
        ("check", ("openai/gpt-4.1-mini",), "S", 70),
    ]
    spec = steps(models=["openai/gpt-5-mini", "openai/gpt-5-nano"])
    assert asks_of(spec)[0].models == ("openai/gpt-5-mini", "openai/gpt-5-nano")
    assert asks_of(spec)[1].models == ("openai/gpt-4.1",)
    (only,) = asks_of(make_spec(model="fake", prompt="{input}", max_tokens=3, choices="a,b"))
    assert (only.models, only.max_tokens, only.choices) == (("fake",), 3, ("a", "b"))


def test_models_that_are_never_asked_are_not_paid():
    own = [{"name": "a", "prompt": "{input}", "model": "openai/gpt-4.1"}]
    assert first_models(steps(steps=own)) == ("openai/gpt-4.1",)
    reduced = steps(steps=own, aggregate_prompt="{input}")
    assert first_models(reduced) == ("openai/gpt-4.1", "openai/gpt-5-mini")


@pytest.mark.parametrize(
    ("own", "problem"),
    [
        ({"model": "openai/unheard-of"}, "the price of openai/unheard-of is unknown"),
        ({"model": "somewhere/else", "max_tokens": 4}, "the price of somewhere/else is unknown"),
        ({"model": "openai/gpt-4.1"}, None),
    ],
)
def test_a_budget_must_be_kept_for_the_model_of_each_step(own, problem):
    made = [*STEPS[:-1], {**STEPS[-1], **own}]
    found = unkept(steps(steps=made), BudgetLimits(nano_usd=10**9))
    assert problem in found[1] if found else problem is None


@pytest.mark.parametrize(
    ("own", "problem"),
    [
        ({"split_model": "openai/unheard-of"}, "the price of openai/unheard-of is unknown"),
        ({"split_model": "own/s"}, "the longest answer of own/s is unknown"),
        # Its max_tokens are of the map alone.
        ({}, "the longest answer of own/m is unknown"),
        ({"split_model": "openai/gpt-4.1", "fallback": ["own/f"]}, "longest answer of own/f"),
        ({"split_model": "openai/gpt-4.1"}, None),
        ({"split": "none"}, None),
    ],
)
def test_a_budget_must_be_kept_for_the_model_that_splits(own, problem):
    job = {"model": "own/m", "prompt": "{input}", "max_tokens": 9, "split": "model", **own}
    asked = {job["model"], job.get("split_model", "own/m"), *job.get("fallback", ())}
    price = {name: {"input_mtok": 1, "output_mtok": 1} for name in asked if name.startswith("own/")}
    spec = make_spec(**job, price=price)
    found = unkept(spec, BudgetLimits(nano_usd=10**9))
    assert problem in found[1] if found and problem else (found, problem) == (None, None)


def test_the_length_of_answers_must_be_known_for_each_step():
    price = {"own/m": {"input_mtok": 1, "output_mtok": 1}}
    made: list[dict[str, Any]] = [
        {"name": "a", "prompt": "{input}", "max_tokens": 5},
        {"name": "b", "prompt": "{a}"},
    ]
    spec = make_spec(model="own/m", price=price, steps=made)
    (_, why) = unkept(spec, BudgetLimits(nano_usd=10**9)) or ("", "")
    assert "the longest answer of own/m is unknown" in why
    made[1]["max_tokens"] = 7
    assert (
        unkept(make_spec(model="own/m", price=price, steps=made), BudgetLimits(nano_usd=10**9))
        is None
    )


def test_a_budget_has_room_for_each_step_that_every_branch_makes():
    spec = steps()
    require_room(spec, BudgetLimits(tokens=2_000))
    for place, max_tokens, is_refused in ((3, 5_000, True), (1, 5_000, False), (4, 5_000, True)):
        made = [dict(one) for one in STEPS]
        made[place]["max_tokens"] = max_tokens
        if is_refused:
            with pytest.raises(SpecError, match=f"any call of step {made[place]['name']} to"):
                require_room(steps(steps=made), BudgetLimits(tokens=2_000))
        else:
            # A route may leave it out.
            require_room(steps(steps=made), BudgetLimits(tokens=2_000))


def test_what_is_not_enforced_is_told_of_each_step():
    found = list(unenforced(steps()))
    assert len(found) == 1
    assert "schema of step facts" in found[0]


def test_the_models_of_steps_are_named():
    named = steps(fallback=["fake"]).named_models
    assert named == (
        "openai/gpt-5-mini (steps: openai/gpt-4.1, openai/gpt-4.1-mini; fallback: fake)"
    )
