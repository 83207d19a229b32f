"""A run that is stopped while it reduces: what its reduces have come to stays, and the rest says why not."""

from __future__ import annotations

import itertools
import json
from functools import partial

import pytest

from fanout.client.run_answers import RunAnswers
from fanout.core.errors import BrokerError, LLMError, RunError
from fanout.core.ids import StageId
from fanout.core.records import ErrorKind, RunStatus
from fanout.policy.packing import pack
from fanout.runs.retried_runs import retry_failed
from tests.fakes import RUN, FakeContext, run_branch
from tests.unit.workers.test_comparisons import longer, through
from tests.unit.workers.test_reduces import (
    COUNTS,
    EACH,
    RANKED,
    REFINED,
    SMALL,
    SUM,
    TEXTS,
    aggregated,
    answered,
)
from workers.reduce import made, reductions, writing
from workers.reduce.stages import aggregate, collect
from workers.reduce.stopped import STOPPED

# So that trees and chains have several calls, one after the other.
TIGHT = {**SMALL, "context_tokens": 380}
VOTES = {"name": "votes", "vote": None}


def stopped(*reduces, at, status=RunStatus.CANCELLED, error=None):
    """Process a run that is halted when its model is asked for what has ``at`` in its prompt."""
    context = FakeContext(**TIGHT, reduce=list(reduces))

    def answer(request):
        if at(request.prompt):
            context.store.halt(RUN, status, error=error)
        return answered(request)

    context.answer = answer
    through(context, TEXTS, max_branches=20)
    return context


def test_groups_that_are_done_and_what_takes_no_call_stand():
    asked = []

    def is_last(prompt):
        asked.extend([prompt] if "EACH" in prompt else [])
        return len(asked) == 41

    context = stopped(COUNTS, EACH, VOTES, at=is_last)
    run = context.store.run(RUN)
    assert (run.status, run.error) == (RunStatus.CANCELLED, None)
    found = aggregated(context)
    assert found["counts"] == [{"count": 60}]
    assert found["votes"]["votes"]
    made = [one for one in found["each"].values() if one is not None]
    assert 40 <= len(made) < len(found["each"]) == 60
    result = RunAnswers(RUN, context.store).result()
    coverage = result.aggregate_coverage
    for group, value in found["each"].items():
        assert coverage["each"][group].branches == 1
        assert coverage["each"][group].problem == (None if value else STOPPED)
    assert any(STOPPED in note for note in result.notes)
    assert {one.kind for one in context.result.all_errors} == {ErrorKind.CANCELLED}


@pytest.mark.parametrize("reduce", [SUM, RANKED, REFINED])
@pytest.mark.parametrize("number", [1, 2])
def test_one_whose_calls_have_not_ended_says_so(reduce, number):
    asked = []

    def is_it(prompt):
        asked.extend([prompt] if "SUM" in prompt or "longer" in prompt else [])
        return len(asked) == number

    context = stopped(reduce, COUNTS, at=is_it)
    assert context.store.run(RUN).status is RunStatus.CANCELLED
    assert aggregated(context) == {reduce["name"]: None, "counts": [{"count": 60}]}
    result = RunAnswers(RUN, context.store).result()
    coverage = result.aggregate_coverage[reduce["name"]]
    assert (coverage.problem, coverage.branches, coverage.branches_behind) == (STOPPED, 60, 60)
    assert f"{reduce['name']}: no aggregate: {STOPPED}" in result.notes


def test_one_that_has_ended_before_stands_and_a_retry_makes_the_rest():
    # Comparisons go on when each group has its answer.
    compared = []

    def is_late(prompt):
        compared.extend([prompt] if "longer" in prompt else [])
        return len(compared) == 150

    context = stopped(EACH, RANKED, at=is_late)
    found = aggregated(context)
    assert all(found["each"].values())
    assert found["ranked"] is None
    whole = FakeContext(**TIGHT, reduce=[EACH, RANKED])
    whole.answer = answered
    through(whole, TEXTS, max_branches=20)
    retry_failed(context.store, context.connections.publisher, RUN, None)
    context.answer = answered
    stage = context.store.run(RUN).base_stage
    context.process(0)
    while not context.store.run(RUN).has_ended:
        stage += 1
        context.process(stage)
    assert aggregated(context) == aggregated(whole)


def test_a_single_reduce_and_a_halt_as_failed_are_alike():
    context = FakeContext(**TIGHT, aggregate_prompt="SUM {input}", aggregate_max_tokens=30)

    def answer(request):
        if "SUM" in request.prompt:
            context.store.halt(RUN, RunStatus.FAILED, error="the key was refused")
        return longer(request) if "SUM" not in request.prompt else "x"

    context.answer = answer
    through(context, TEXTS, max_branches=20)
    run = context.store.run(RUN)
    assert (run.status, run.error) == (RunStatus.FAILED, "the key was refused")
    result = RunAnswers(RUN, context.store).result()
    assert result.aggregated is None
    assert result.aggregate_coverage.problem == STOPPED
    assert f"no aggregate: {STOPPED}" in result.notes


def test_a_run_that_is_stopped_in_its_map_has_no_aggregate():
    context = stopped(COUNTS, EACH, at=lambda prompt: prompt == TEXTS[30])
    assert context.store.run(RUN).status is RunStatus.CANCELLED
    assert context.store.result(RUN) is None


RESOLVED = {"name": "resolved", "resolve": {"by": "output"}, "aggregate_max_tokens": 30}
BEST = {"name": "best", "best": "the longer", "aggregate_max_tokens": 30}


def test_values_whose_pairs_are_all_compared_stand():
    context = FakeContext(**SMALL, reduce=[RESOLVED, RANKED])

    def answer(request):
        if "value_A" in request.prompt:
            return json.dumps({"reasons": "r", "same": False})
        if "longer" in request.prompt:
            if context.store.stage(StageId(RUN, 2)).total:
                context.store.halt(RUN, RunStatus.CANCELLED)
            return longer(request)
        number = int(request.prompt.split()[1])
        return f"Acme Corp {'x' * number}" if number % 2 else "Acme Corp"

    context.answer = answer
    through(context, TEXTS[:20], max_branches=20)
    assert context.store.run(RUN).status is RunStatus.CANCELLED
    found = aggregated(context)
    assert found["ranked"] is None
    assert [row["count"] for row in found["resolved"]] == [10, *[1] * 10]


def test_comparisons_that_were_cancelled_behind_very_many_failures_are_no_ties(monkeypatch):
    monkeypatch.setattr(made, "_MOST_ERRORS", 3)
    context = FakeContext(
        reduce="best", criteria=["the longer"], prompt=None, cache=False,
        aspects={"a": "{input}", "b": "{input}bbb"}, retries={"max_attempts": 1},
    )  # fmt: skip
    asked = []

    def answer(request):
        if "longer" in request.prompt:
            asked.append(request)
            if len(asked) <= 4:
                raise LLMError(ErrorKind.CONTENT_FILTER, "no")
            if len(asked) == 7:
                context.store.halt(RUN, RunStatus.CANCELLED)
        return longer(request)

    context.answer = answer
    through(context, [f"text {n}" for n in range(8)])
    assert len(asked) == 7, "one has both its calls"
    result = RunAnswers(RUN, context.store).result()
    assert result.aggregated is None
    assert result.aggregate_coverage.problem == STOPPED


@pytest.mark.parametrize("reduce", [BEST, RESOLVED])
def test_a_round_of_which_only_the_first_calls_were_written_is_no_whole_one(reduce, monkeypatch):
    """The chain beside it seals their stage when the run is stopped, and another worker ends the stage."""
    context = FakeContext(**TIGHT, reduce=[REFINED, reduce], samples=2, seed=1)
    small = partial(pack, max_branches=4)
    monkeypatch.setattr(writing, "pack", small)
    numbers, put_next = itertools.count(), context.store.put_next
    context.answer = lambda request: (
        json.dumps({"reasons": "r", "same": False})
        if "value_A" in request.prompt
        else answered(request)
        if "longer" in request.prompt
        else f"Acme {next(numbers)}"
    )

    def put(shard_id, *args, **options):
        is_first = put_next(shard_id, *args, **options)
        if options["reduce"] == reduce["name"]:
            monkeypatch.setattr(context.store, "put_next", put_next)
            end_as_stopped(context, shard_id)
        return is_first

    monkeypatch.setattr(context.store, "put_next", put)
    through(context, TEXTS[:20], max_branches=20)
    assert context.store.run(RUN).status is RunStatus.CANCELLED
    assert context.store.stage(StageId(RUN, 1)).total == 1 + 4
    assert aggregated(context)[reduce["name"]] is None


def end_as_stopped(context, shard_id):
    """Process the first call of a chain, and the shard behind it, while others would still be written."""
    chain = shard_id.stage_id.shard(0)
    for one in (chain, shard_id):
        for position in range(context.store.shard(one).count):
            run_branch(context, one.branch(position))
    collect(context, [], shard_id)
    context.store.halt(RUN, RunStatus.CANCELLED)
    collect(context, [], chain)
    aggregate(context, shard_id.stage_id)


def test_a_run_that_is_stopped_ends_although_its_aggregates_cannot_be_made(monkeypatch):
    faults = [BrokerError("away"), RunError("no room for temporary files")]
    monkeypatch.setattr(reductions, "kept", lambda *_args: raised(faults.pop(0)))
    context = FakeContext(**SMALL, reduce=[SUM, COUNTS])

    def answer(request):
        if "SUM" in request.prompt:
            context.store.halt(RUN, RunStatus.CANCELLED)
        return request.prompt

    context.answer = answer
    with pytest.raises(BrokerError):
        through(context, TEXTS[:8])
    aggregate(context, StageId(RUN, 1))
    assert context.store.run(RUN).status is RunStatus.CANCELLED
    assert context.store.result(RUN) is None


def raised(error):
    raise error
