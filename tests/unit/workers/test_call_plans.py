"""What the calls of a stage to a model need is decided once."""

from __future__ import annotations

import pytest

from fanout.core.budgets import BudgetLimits
from fanout.core.ids import StageId
from fanout.llm import FakeLLM
from fanout.llm.call_bounds import CallBounds
from fanout.policy.pricing import FREE, Price
from tests.fakes import RUN, FakeContext
from workers.context import budgets, call_plans
from workers.context.call_plans import CallPlans

STAGE = StageId(RUN, 0)
OTHER = FakeLLM()


@pytest.fixture
def asked(monkeypatch):
    """Return the models whose prices were looked for."""
    models = []

    def price_of(model, _given):
        models.append(model)
        return FREE

    monkeypatch.setattr(call_plans, "price_of", price_of)
    return models


@pytest.mark.parametrize(
    ("stage", "model", "llm", "fields", "later_s", "looked"),
    [
        (STAGE, "fake", None, {}, 59, 1),
        # Prices may change with the time of day.
        (STAGE, "fake", None, {}, 60, 2),
        (StageId(RUN, 1), "fake", None, {}, 0, 2),
        (StageId("other", 0), "fake", None, {}, 0, 2),
        (STAGE, "fake?seed=1", None, {}, 0, 2),
        (STAGE, "fake", OTHER, {}, 0, 2),
        (STAGE, "fake", None, {"budget": {"calls": 1}}, 0, 2),
    ],
)
def test_a_plan_is_made_once_for_a_stage_and_a_model(
    asked, stage, model, llm, fields, later_s, looked
):
    now = 0.0
    context = FakeContext(model="fake")
    plans = CallPlans(context.settings, context.budgets, clock=lambda: now)
    spec = FakeContext(**fields).spec if fields else context.spec
    first = plans.plan(STAGE, "fake", context.llm, context.spec)
    now = float(later_s)
    plan = plans.plan(stage, model, llm or context.llm, spec)
    assert len(asked) == looked
    assert (plan is first) == (looked == 1)
    assert (plan.budget is not None) == bool(fields)


def test_a_branch_decides_nothing_that_its_stage_has_decided(asked):
    context = FakeContext(context_tokens=300, output_format="json", price={"fake": PRICE})
    context.answer = lambda _: "{}"
    context.write(["a", "b", "c"])
    context.process()
    assert asked == ["fake"]
    plan = context.call_plans.plan(STAGE, "fake", context.llm, context.runs.specs.known(RUN))
    assert (plan.wants_json, plan.window_tokens) == (True, 300)


@pytest.mark.parametrize("days", [{}, {"fake*": BudgetLimits(calls=9)}])
def test_the_most_that_a_call_can_use_is_worked_out_once_by_bounds_of_its_stage(monkeypatch, days):
    asked = []

    class Bounds(CallBounds):
        def most(self, request):
            asked.append((self, request.prompt))
            return super().most(request)

    monkeypatch.setattr(budgets, "CallBounds", Bounds)
    context = FakeContext(budget={"calls": 9})
    context.has_days(days)
    context.write(["a", "b", "c"])
    context.process()
    of = list(dict.fromkeys(bounds for bounds, _ in asked))
    assert len(of) == 1 + len(days)
    assert sorted(prompt for _, prompt in asked) == sorted("abc" * len(of))


PRICE = {"input_mtok": 1.0, "output_mtok": 2.0}


def test_the_claim_of_a_run_that_may_queue_lasts_a_day_longer():
    context = FakeContext()
    limited = FakeContext(budget={"calls": 1}).spec
    day_s = 24 * 3600

    def claim_s(run_id, spec, *, is_held_back=False):
        return context.call_plans.claim_s(run_id, spec, lambda _: is_held_back)

    plain_s = claim_s("plain", context.spec)
    assert claim_s("plain", context.spec, is_held_back=True) == plain_s + day_s
    assert claim_s("limited", limited) == claim_s("plain", limited) == plain_s + day_s


def test_the_price_of_the_plan_is_that_of_its_calls():
    context = FakeContext(price={"fake": PRICE})
    plan = context.call_plans.plan(STAGE, "fake", context.llm, context.spec)
    assert plan.price == Price(**PRICE, is_given=True)
