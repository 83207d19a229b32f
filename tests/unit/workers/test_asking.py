"""Branches that ask several models: in turn where one gives no answer, or each by itself."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import msgspec
import pytest

from fanout.core.errors import LLMError, ModelError
from fanout.core.ids import ShardId, StageId
from fanout.core.records import ErrorKind, RunStatus, Usage
from fanout.llm import FakeLLM
from fanout.llm.base import LLMReply
from fanout.llm.error_kinds import FEW
from fanout.policy.outages import FailureVerdict
from tests.fakes import RUN, FakeContext
from workers.branch.claims import Claim

FAST = {"base_wait_s": 0.0, "max_attempts": 3}
FALLING = [
    ErrorKind.CONTENT_FILTER,
    ErrorKind.CONTEXT_LENGTH,
    ErrorKind.TRUNCATED,
    ErrorKind.INVALID_OUTPUT,
    ErrorKind.SERVER_ERROR,
]


def reply(text, tokens=1):
    usage = Usage(calls=1, input_tokens=tokens, output_tokens=1, cost_usd=0.5)
    return LLMReply(text=text, usage=usage)


def fails(kind, **more):
    return lambda _request: LLMError(kind, "no", usage=reply("").usage, **more)


def context_of(scripts, texts=("t0",), **fields):
    """Return a context whose models do what the scripts say, with a run of the first one's."""
    context = FakeContext(**{"model": next(iter(scripts)), "retries": FAST, **fields})
    context.models.made = {name: FakeLLM(script=one) for name, one in scripts.items()}
    context.write(texts)
    return context


def processed(scripts, texts=("t0",), **fields):
    context = context_of(scripts, texts, **fields)
    context.process()
    return context, outcomes(context)


def outcomes(context):
    shards = range(context.store.stage(ShardId(RUN, 0, 0).stage_id).shards)
    found = {}
    for shard in shards:
        for outcome in context.store.outcomes(ShardId(RUN, 0, shard)).values():
            found[outcome.index] = outcome
    return [found[index] for index in sorted(found)]


def calls(context):
    return {name: llm.calls for name, llm in context.models.made.items()}


@pytest.mark.parametrize("kind", FALLING)
def test_the_next_model_answers_where_one_ended_without(kind):
    scripts = {"a": fails(kind), "b": lambda _: reply("yes", tokens=7)}
    context, [outcome] = processed(scripts, fallback=["b"])
    made = calls(context)
    assert (outcome.output, outcome.kind, outcome.model) == ("yes", None, "b")
    assert outcome.attempts == made["a"] + made["b"] == outcome.usage.calls
    assert made["b"] == 1
    assert outcome.usage_of["b"] == reply("", tokens=7).usage
    assert outcome.usage_of["a"].calls == made["a"]
    assert outcome.usage.input_tokens == made["a"] + 7


@pytest.mark.parametrize("kind", [kind for kind in ErrorKind if kind not in FALLING])
def test_no_other_model_is_asked_after_other_failures(kind):
    scripts = {"a": fails(kind, is_own=True), "b": lambda _: reply("yes")}
    context, [outcome] = processed(scripts, fallback=["b"])
    assert (outcome.kind, outcome.model, calls(context)["b"]) == (kind, None, 0)
    assert outcome.usage_of == {}


def test_an_answer_of_the_first_model_is_its_own():
    context, [outcome] = processed({"a": lambda _: reply("yes")}, fallback=["b"])
    assert (outcome.model, outcome.usage_of, calls(context)) == (None, {}, {"a": 1})


def test_the_models_are_asked_in_order_and_the_last_failure_stands():
    scripts = {
        "a": fails(ErrorKind.CONTENT_FILTER),
        "b": fails(ErrorKind.TRUNCATED),
        "c": fails(ErrorKind.CONTEXT_LENGTH),
    }
    context, [outcome] = processed(scripts, fallback=["b", "c"])
    assert outcome.kind is ErrorKind.CONTEXT_LENGTH
    assert outcome.message == "c: no (asked before it: a: content_filter; b: truncated)"
    assert outcome.attempts == sum(calls(context).values())
    assert list(outcome.usage_of) == ["a", "b", "c"]


def test_a_fallback_that_cannot_be_used_costs_nobody_the_first_models_usage():
    context = context_of({"a": fails(ErrorKind.CONTENT_FILTER)}, fallback=["no/such"])

    async def get(name):
        raise ModelError(f"unknown model {name}")

    context.models.get = get
    context.process()
    [outcome] = outcomes(context)
    assert outcome.kind is ErrorKind.BAD_REQUEST
    assert outcome.usage == reply("").usage
    assert "asked before it: a: content_filter" in (outcome.message or "")


def test_each_of_several_models_has_the_fallback_that_is_not_itself():
    scripts = {"a": fails(ErrorKind.CONTENT_FILTER), "b": fails(ErrorKind.CONTENT_FILTER)}
    context, ended = processed(scripts, model=None, models=["a", "b"], fallback=["b"])
    assert [one.usage_of.keys() for one in ended] == [{"a", "b"}, set()]
    assert calls(context) == {"a": 1, "b": 2}


GOES_BY = [
    ({"reduce": "vote", "group_by": "model"}, {"a": {"y": 2}, "b": {"y": 2}}),
    ({"reduce": "vote", "by": "fanout.model"}, {"a": 2, "b": 2}),
    ({"reduce": "table", "by": "model"},
     [{"model": "a", "count": 2}, {"model": "b", "count": 2}]),
    ({"reduce": "top", "by": "output"},
     [("b", "a"), ("b", "a"), ("b", "b"), ("b", "b")]),
    ({"reduce": "concat"}, "b in place of a"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "expected"), GOES_BY)
def test_aggregates_go_by_the_model_that_was_asked_and_say_which_answered(fields, expected):
    text = "7" if fields["reduce"] == "top" else "y"
    scripts = {"a": fails(ErrorKind.CONTENT_FILTER), "b": lambda _: reply(text)}
    context, _ = processed(
        scripts, ["t0", "t1"], model=None, models=["a", "b"], fallback=["b"], **fields
    )
    aggregates = context.result.aggregates
    value = aggregates[""].value if "" in aggregates else None
    if fields["reduce"] == "top":
        assert sorted((row["model"], row["asked_model"]) for row in value) == expected
    elif fields["reduce"] == "concat":
        assert value.count(expected) == 2
    elif value is None:
        assert {group: one.value["votes"] for group, one in aggregates.items()} == expected
    else:
        assert (value["votes"] if fields["reduce"] == "vote" else value) == expected


def test_every_model_gets_every_prompt_and_its_usage():
    scripts = {"a": lambda _: reply("x", tokens=2), "b": lambda _: reply("y", tokens=3)}
    context, ended = processed(
        scripts, ["t0", "t1"], model=None, models=["a", "b"], samples=2,
        prompt=None, aspects={"p": "{input}", "q": "{input}?"}, reduce="vote", group_by="model",
    )  # fmt: skip
    assert [one.output for one in ended] == ["x", "x", "y", "y"] * 4
    assert calls(context) == {"a": 8, "b": 8}
    assert {group: one.value["votes"] for group, one in context.result.aggregates.items()} == {
        "a": {"x": 8},
        "b": {"y": 8},
    }


def test_the_stage_counts_the_usage_of_each_model():
    scripts = {
        "a": fails(ErrorKind.CONTENT_FILTER),
        "b": lambda _: reply("x", tokens=3),
        "c": lambda _: LLMReply(text="y"),
    }
    context, _ = processed(
        scripts, ["t0", "t1"], model=None, models=["a", "b"], fallback=["c", "b"], samples=3,
        aggregate_prompt="{input}",
    )  # fmt: skip
    context.process(1)
    stages = [context.store.stage(StageId(RUN, stage)) for stage in (0, 1)]
    assert stages[0].usage_of["a"] == Usage(calls=6, input_tokens=6, output_tokens=6, cost_usd=3.0)
    assert {name: used.calls for name, used in stages[1].usage_of.items()} == {"a": 1, "c": 1}
    assert stages[1].usage_of["c"].input_tokens is None
    for stage in stages:
        assert sum(used.calls for used in stage.usage_of.values()) == stage.usage.calls


def test_one_model_with_a_wrong_key_does_not_stop_the_others():
    scripts = {"a": fails(ErrorKind.AUTH), "b": lambda _: reply("yes")}
    context, ended = processed(scripts, ["t0", "t1", "t2"], model=None, models=["a", "b"])
    assert [one.kind for one in ended] == [ErrorKind.AUTH, None] * 3
    assert calls(context) == {"a": 1, "b": 3}
    assert [one.attempts for one in ended] == [1, 1, 0, 1, 0, 1]
    assert context.store.run(RUN).status is RunStatus.SUCCEEDED


def test_a_retry_asks_a_model_again_that_had_a_wrong_key():
    scripts = {"a": fails(ErrorKind.AUTH), "b": lambda _: reply("yes")}
    context, _ = processed(scripts, ["t0", "t1"], model=None, models=["a", "b"])
    context.models.made["a"] = FakeLLM(script=lambda _: reply("now"))
    assert context.store.reopen_run(RUN, retry=frozenset({ErrorKind.AUTH}))
    context.process()
    assert [one.output for one in outcomes(context)] == ["now", "yes", "now", "yes"]
    assert calls(context) == {"a": 2, "b": 2}


def test_failures_of_before_a_retry_leave_out_no_model_in_it():
    scripts = {"a": fails(ErrorKind.AUTH, stop_after=FEW), "b": lambda _: reply("yes")}
    context, _ = processed(scripts, ["t0", "t1"], model=None, models=["a", "b"])
    assert calls(context) == {"a": FEW - 1, "b": 2}
    assert context.store.reopen_run(RUN, retry=frozenset({ErrorKind.AUTH}))
    context.process()
    # Both are asked again, and not only the first that fails as those before.
    assert calls(context) == {"a": 2 * (FEW - 1), "b": 2}


def test_a_run_stops_when_none_of_its_models_can_be_called():
    scripts = {"a": fails(ErrorKind.AUTH), "b": fails(ErrorKind.BUDGET)}
    context = context_of(scripts, ["t0", "t1", "t2"], model=None, models=["a", "b"])
    context.process()
    run = context.store.run(RUN)
    assert (run.status, calls(context)) == (RunStatus.FAILED, {"a": 1, "b": 1})
    assert run.error == "budget: no"


def test_an_aggregate_of_the_model_falls_back_too():
    scripts = {"a": fails(ErrorKind.CONTENT_FILTER), "b": lambda _: reply("sum")}
    context, _ = processed(scripts, fallback=["b"], aggregate_prompt="{input}")
    context.process(1)
    assert context.result.aggregates[""].value == "sum"
    assert calls(context) == {"a": 2, "b": 2}


def test_a_model_that_is_down_is_left_out_until_it_answers_again():
    """A branch with a fallback does not wait for the end of an outage."""
    is_down = True

    def broken(_request):
        return LLMError(ErrorKind.SERVER_ERROR, "down") if is_down else reply("a")

    texts = [f"t{number}" for number in range(40)]
    scripts = {"a": broken, "b": lambda _: reply("b")}
    context, ended = processed(scripts, texts, fallback=["b"])
    assert [one.output for one in ended] == ["b"] * 40
    assert calls(context)["b"] == 40
    # The first ones use all their attempts; then nobody asks it, but for a probe now and then.
    assert calls(context)["a"] < 40
    assert msgspec.structs.asdict(ended[-1])["model"] == "b"


@pytest.mark.parametrize(("compares", "cost"), [(True, 1 / 3), (False, 0.0)])
def test_answers_of_another_model_do_not_count_against_a_failure(compares, cost):
    """Where a run calls several models, the successes of its stage are not all of this one."""
    blind = FailureVerdict(cost=0.0, is_blind=True)

    async def leave(*_call):
        return blind

    found = iter([3, 5])

    async def succeeded():
        return next(found)

    claim = SimpleNamespace(
        waits=lambda: None,
        lead=None,
        succeeded=succeeded,
    )
    inner = SimpleNamespace(leave=leave)
    gate = Claim.gate(claim, inner, 9.0, compares=compares)
    error = LLMError(ErrorKind.CONNECTION, "no")

    async def fail_twice():
        await gate.leave(None, None, error)
        return await gate.leave(None, None, error)

    assert asyncio.run(fail_twice()).cost == pytest.approx(cost)
