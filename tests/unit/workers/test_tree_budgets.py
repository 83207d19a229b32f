"""A budget that ends within a tree: what its calls have found gets to the root, and the coverage says so."""

from __future__ import annotations

import asyncio
import re

import pytest

from fanout.core.budgets import NO_AMOUNTS, Amounts
from fanout.core.records import ErrorKind, RunStatus, Usage
from fanout.core.spec import make_budget, stored_spec
from fanout.llm import FakeLLM
from fanout.llm.base import LLMReply
from fanout.runs.retried_budgets import has_room_again
from fanout.runs.retried_runs import retry_failed
from tests.fakes import RUN, FakeContext
from tests.unit.workers.test_comparisons import through

COUNT = 60
# Some five answers fill a prompt, and some seven partial results.
SMALL = {
    "aggregate_prompt": "SUM {input}", "tokenizer": "bytes/4", "context_tokens": 340, "max_tokens": 20,
    "aggregate_max_tokens": 20, "fence": False, "cache": False, "retries": {"max_attempts": 1},
    "price": {"input_mtok": 1.0, "output_mtok": 1.0},
}  # fmt: skip
FIELDS = ["reduced:usd", "reduced:calls", "reduced:tokens"]
NUMBER = re.compile(r"n=(\d+)")
TEXTS = [f"n=1 text {number} {'of words ' * 12}" for number in range(COUNT)]


class Sums:
    """Answers with the number of branches below, at once, and adds up what is used."""

    def __init__(self):
        self.of_map = self.of_tree = NO_AMOUNTS

    def answer(self, request):
        total = sum(map(int, NUMBER.findall(request.prompt)))
        text = f"n={total} " + "w" * 60
        tokens = len(request.prompt) // 2
        used = Amounts(nano_usd=1_000 * (tokens + 15), calls=1, tokens=tokens + 15)
        if request.prompt.startswith("SUM"):
            self.of_tree += used
        else:
            self.of_map += used
        return LLMReply(text=text, usage=Usage(calls=1, input_tokens=tokens, output_tokens=15))


def budgeted(texts=TEXTS, **fields):
    """Process a run to its end; return its context, and what was used."""
    context, sums = FakeContext(**{**SMALL, **fields}), Sums()
    context.models.made = {"fake": FakeLLM(script=sums.answer)}
    through(context, texts, max_branches=20)
    asyncio.run(context.budgets.aclose())
    return context, sums


def test_the_server_knows_what_of_a_budget_the_tree_has_used():
    """It is no longer kept for the tree, and the branches may use the rest."""
    context, sums = budgeted(budget={"calls": 200})
    stored = context.store._redis.hmget(f"{context.store._run(RUN)}:budget", FIELDS)
    usd, calls, tokens = (int(one or 0) for one in stored)
    assert sums.of_tree.calls > 10
    assert Amounts(nano_usd=usd, calls=calls, tokens=tokens) == sums.of_tree


def below(text):
    return int(NUMBER.findall(text)[0])


@pytest.fixture(scope="module")
def whole():
    """What a run uses that has enough."""
    context, sums = budgeted(budget={"calls": 100_000})
    assert below(context.result.aggregates[""].value) == COUNT
    return sums


def require_root(context, least_behind):
    """Check that there is an aggregate of what was paid for, that says what is missing, within the budget."""
    state, made = context.store.budget(RUN), context.result.aggregates[""]
    assert context.store.run(RUN).status is RunStatus.SUCCEEDED
    for part in ("nano_usd", "calls", "tokens"):
        limit = getattr(state.limits, part)
        assert limit is None or getattr(state.used, part) <= limit
    assert made.coverage.problem is None
    assert made.value is not None
    found = made.coverage
    assert found.branches == COUNT
    assert below(made.value) == found.branches_behind >= least_behind
    missing = found.missing.get("budget", 0) + found.lost.get("budget", 0)
    assert missing == COUNT - found.branches_behind


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("part", ["calls", "usd", "tokens"])
def test_what_the_calls_of_a_tree_have_found_gets_to_its_root(whole, part, share):
    limit = getattr(whole.of_map, part) + share * getattr(whole.of_tree, part)
    context, sums = budgeted(budget={part: limit if part == "usd" else int(limit)})
    if part != "calls" and share == 0.3:
        # Not even two calls fit with the most that they can use: then none is paid for in vain.
        assert sums.of_tree.calls == 0
        assert "no aggregate could be made: budget" in context.store.run(RUN).error
        return
    require_root(context, least_behind=COUNT * share / 5)


@pytest.mark.parametrize("count", [20, 63, 66, 70])
def test_any_number_of_calls_leaves_one_for_the_root(count):
    context, _ = budgeted(budget={"calls": count})
    require_root(context, least_behind=5)


def test_a_retry_with_more_makes_an_aggregate_of_all(whole):
    context, _ = budgeted(budget={"calls": int(whole.of_map.calls * 0.9)})
    require_root(context, least_behind=1)
    retry_failed(context.store, context.publisher, RUN, None, make_budget({"calls": 1_000}))
    stage = 0
    while not context.store.run(RUN).has_ended:
        context.process(stage=stage)
        stage = max(stage, context.store.run(RUN).base_stage) + 1
    assert below(context.result.aggregates[""].value) == COUNT


def test_a_retry_of_a_budget_that_is_used_up_processes_no_branch():
    context, _ = budgeted(budget={"calls": 40})
    spent = context.store.budget(RUN).spent
    assert spent.calls == 40
    status = context.store.run(RUN).status
    assert retry_failed(context.store, context.publisher, RUN, None) == 0
    assert (context.store.run(RUN).status, context.store.budget(RUN).spent) == (status, spent)
    require_root(context, least_behind=1)


def test_a_retry_without_room_for_any_call_keeps_what_a_run_that_was_stopped_has_made():
    context, _ = budgeted(budget={"calls": 40})
    made = context.result.aggregates[""].value
    context.store._redis.hset(context.store._run(RUN), "status", RunStatus.CANCELLED.value)
    assert retry_failed(context.store, context.publisher, RUN, None) == 0
    assert context.store.run(RUN).status is RunStatus.CANCELLED
    assert context.result.aggregates[""].value == made


@pytest.mark.parametrize(
    ("texts", "aspects", "made", "left"),
    [
        # Calls of groups found no room, and now there is none for any call.
        (TEXTS[:12], 1, 3, 0),
        # No call of a group has failed: one group has too little behind it.
        (TEXTS[:2], 6, 1, 2),
    ],
)
def test_a_retry_without_room_for_a_branch_keeps_what_reduces_have_made(texts, aspects, made, left):
    # One of the reduces has too little behind it, and so the run fails.
    own = {"group_by": "document", "aggregate_max_tokens": 20}
    reduce = [
        {"name": "all", "llm": "SUM {input}", "aggregate_max_tokens": 20},
        {"name": "each", "llm": "SUM {group} {input}", **own},
    ]
    none = {"aggregate_prompt": None, "aggregate_max_tokens": None, "prompt": None}
    context, _ = budgeted(
        texts, **none, reduce=reduce, min_group_success=0.9, budget={"calls": 12},
        context_tokens=2_000, aspects={f"a{number}": "{input}" for number in range(aspects)},
    )  # fmt: skip
    run, spent, result = context.store.run(RUN), context.store.budget(RUN).spent, context.result
    assert (run.status, spent.calls) == (RunStatus.FAILED, 12 - left)
    groups = result.named["each"].aggregates.values()
    assert len([one for one in groups if one.value is not None]) == made
    assert retry_failed(context.store, context.publisher, RUN, None) == 0
    assert (context.store.run(RUN).ended_at, context.result) == (run.ended_at, result)
    # With room for it, the retry goes on.
    more = make_budget({"calls": 100})
    assert retry_failed(context.store, context.publisher, RUN, None, more) > 0
    assert not context.store.run(RUN).has_ended


def test_a_retry_whose_budget_has_no_room_for_all_groups_again_and_one_more_keeps_those_that_are_made():
    own = {"group_by": "document", "context_tokens": 2_000}
    context, _ = budgeted(TEXTS[:12], **own, budget={"calls": 16})
    before, result = context.store.run(RUN), context.result
    assert before.status is RunStatus.SUCCEEDED
    assert sum(one.value is not None for one in result.aggregates.values()) == 4
    # Answers are not kept: four calls would make these four again.
    for calls in (18, 20):
        more = make_budget({"calls": calls})
        assert retry_failed(context.store, context.publisher, RUN, None, more) == 0
        run = context.store.run(RUN)
        assert (run.opening, run.ended_at, context.result) == (0, before.ended_at, result)
    spec = stored_spec(context.store.spec(RUN))
    kept = spec.model_copy(update={"model": "openai/gpt-5-mini", "cache": True})
    failed = frozenset({ErrorKind.BUDGET}), frozenset({ErrorKind.TIMEOUT})
    assert [has_room_again(context.store, run, spec, reduce_kinds=one) for one in failed] == [
        False,
        True,
    ]
    assert has_room_again(context.store, run, kept, reduce_kinds=failed[0])
    more = make_budget({"calls": 21})
    assert retry_failed(context.store, context.publisher, RUN, None, more) == 0
    assert not context.store.run(RUN).has_ended


def require_told(made):
    """Check that a tree without an aggregate says that the budget is why, and how much is lost with it."""
    found = made.coverage
    assert made.value is None
    assert found.problem.startswith("budget: ")
    assert (found.branches_behind, found.lost) == (0, {"budget": found.branches})


def test_groups_whose_roots_find_no_room_say_what_is_lost_with_them():
    # Six trees of three calls each.
    fields = {"group_by": "document", "samples": 12, "temperature": 1}
    context, sums = budgeted(TEXTS[:6], **fields, budget={"calls": 6 * 12 + 13})
    made = context.result.aggregates
    assert (len(made), sums.of_tree.calls) == (6, 13)
    assert below(made["d0"].value) == made["d0"].coverage.branches_behind == 12
    for group in ("d1", "d2", "d3", "d4", "d5"):
        require_told(made[group])


def test_a_reduce_of_a_list_whose_root_finds_no_room_says_so():
    llm = {name: SMALL[name] for name in ("aggregate_prompt", "aggregate_max_tokens")}
    none = dict.fromkeys(llm)
    reduce = [{"name": "x", "llm": llm}, {"name": "y", "llm": llm}]
    context, _ = budgeted(**none, reduce=reduce, budget={"calls": COUNT + 23})
    named = context.result.named
    assert below(named["x"].aggregates[""].value) == COUNT
    require_told(named["y"].aggregates[""])
    assert "reduce y: no aggregate could be made: budget" in context.store.run(RUN).error
