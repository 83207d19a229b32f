"""Answers that are cut off at their limit of tokens, in the branches and in the reduce."""

from __future__ import annotations

import pytest

from fanout.client.run import Run
from fanout.core.ids import ShardId, StageId
from fanout.core.records import ErrorKind, Usage
from fanout.llm.base import LLMReply
from tests.fakes import RUN, FakeContext

USAGE = Usage(calls=1, input_tokens=5, output_tokens=2, cost_usd=0.0)


def reply(finish, text="half"):
    return LLMReply(text=text, usage=USAGE, finish_reason=finish)


def processed(told, texts=("a", "b", "c"), **fields):
    """Return the context of a run that has ended, and the limits that its calls had."""
    context, limits = FakeContext(**fields), []

    def answer(request):
        limits.append(request.max_tokens)
        return told(request)

    context.answer = answer
    context.write(texts)
    stage = 0
    while not context.store.run(RUN).has_ended:
        context.process(stage=stage)
        stage += 1
    return context, limits


def result_of(context):
    return Run(RUN, context.store, context.publisher, check=lambda: None).result()


def cut_b(request):
    return reply("length") if request.prompt == "b" else reply("stop", "whole")


@pytest.mark.parametrize(("on_truncated", "limits"), [("fail", [9, 9, 18, 9]), ("keep", [9, 9, 9])])
def test_a_branch_that_is_cut_off_fails_or_is_kept_and_counted(on_truncated, limits):
    context, asked = processed(cut_b, max_tokens=9, on_truncated=on_truncated)
    assert sorted(asked) == sorted(limits)
    result, kept = result_of(context), on_truncated == "keep"
    assert result.outputs == ["whole", "half" if kept else None, "whole"]
    assert [branch.finish_reason for branch in result.branches] == ["stop", "length", "stop"]
    assert result.notes == (["1 answer was cut off and kept"] if kept else [])
    assert [error.finish_reason for error in result.errors] == ([] if kept else ["length"])
    stage = context.store.stage(StageId(RUN, 0))
    assert (stage.succeeded, stage.failed, stage.kept_truncated) == (
        3 if kept else 2,
        not kept,
        kept,
    )
    assert stage.errors == ({} if kept else {ErrorKind.TRUNCATED: 1})


@pytest.mark.parametrize("on_truncated", ["fail", "keep"])
def test_an_aggregate_that_is_cut_off_fails_or_is_kept_and_counted(on_truncated):
    def told(request):
        return reply("length") if request.prompt.startswith("SUM") else reply("stop", "whole")

    context, limits = processed(
        told, aggregate_prompt="SUM {input}", aggregate_max_tokens=50, on_truncated=on_truncated
    )
    result, kept = result_of(context), on_truncated == "keep"
    assert limits == [None] * 3 + ([50] if kept else [50, 100])
    assert result.aggregated == ("half" if kept else None)
    notes = (
        ["1 answer of the reduce was cut off and kept", "behind it: 3 of 3 branches (100.0%), "]
        if kept
        else ["no aggregate: truncated: "]
    )
    assert [found.startswith(words) for found, words in zip(result.notes, notes, strict=True)] == [
        True
    ] * len(notes)
    assert [error.kind for error in result.reduce_errors] == ([] if kept else [ErrorKind.TRUNCATED])


def test_an_aggregate_gets_no_more_room_than_its_models_window_has():
    def told(request):
        return reply("length") if request.prompt.startswith("SUM") else reply("stop", "whole")

    _, limits = processed(
        told, aggregate_prompt="SUM {input}", aggregate_max_tokens=600, context_tokens=1_200
    )
    assert limits == [None] * 3 + [600]


def test_an_outcome_is_not_larger_than_its_finish_reason():
    context, _ = processed(lambda _request: reply("stop", "whole"), texts=["a"])
    [outcome] = context.store.outcomes(ShardId(RUN, 0, 0)).values()
    assert (outcome.finish_reason, outcome.is_cut, outcome.confidence) == ("stop", False, None)
