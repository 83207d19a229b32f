"""Several reduces in one run: they share the stages, and each comes to what it comes to alone."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from fanout.core.errors import LLMError, SpecError
from fanout.core.field_effects import require_used
from fanout.core.ids import StageId
from fanout.core.records import ErrorKind, RunStatus
from fanout.core.spec import make_spec, stored_spec
from fanout.llm.callables import CallableLLM
from fanout.runs.result_values import stored_values
from fanout.runs.retried_runs import retry_failed
from fanout.runs.stored_aggregates import stored_aggregate
from tests.fakes import RUN, FakeContext
from tests.unit.workers.test_comparisons import longer, through
from workers.context.event_loop import LoopThread
from workers.reduce.stages import aggregate

TEXTS = [f"answer {n} of {'x' * (n % 7)}" for n in range(60)]
# So that trees have several levels.
SMALL = {"context_tokens": 900, "tokenizer": "bytes/4", "cache": False, "model": "fake"}
COUNTS = {"name": "counts", "table": {"measures": ["count"]}}
ALL = {"name": "all", "concat": None}
SUM = {"name": "sum", "llm": {"aggregate_prompt": "SUM {input}", "aggregate_max_tokens": 30}}
EACH = {"name": "each", "llm": "EACH {input}", "group_by": "document", "aggregate_max_tokens": 30}
RANKED = {"name": "ranked", "pairwise": "the longer", "k": 3, "aggregate_max_tokens": 30}

REFINED = {"name": "refined", "llm": {"aggregate_prompt": "SUM {input}", "fold": "refine"},
           "aggregate_max_tokens": 30}  # fmt: skip
ALIKE = {"name": "alike", "llm": {"aggregate_prompt": "SUM {input}"}, "fold": "cluster",
         "aggregate_max_tokens": 30}  # fmt: skip


def answered(request):
    if "SUM" in request.prompt or "EACH" in request.prompt:
        name = "sum" if "SUM" in request.prompt else "each"
        numbers = re.findall(r"answer (\d+)|n=(\d+)", request.prompt)
        return f"{name} n={sum(int(one or other) for one, other in numbers)}"
    return longer(request)


def run(*reduces, answer=answered, **fields):
    context = FakeContext(**SMALL, reduce=list(reduces), **fields)
    return context, processed(context, answer)


def processed(context, answer=answered):
    """Process a run to its end; return the number of its stages."""
    context.asked = []

    def noted(request):
        context.asked.append(request.prompt)
        return answer(request)

    context.answer = noted
    return through(context, TEXTS, max_branches=20)


def aggregated(context):
    return stored_aggregate(stored_values(context.store, RUN), context.spec).value()


@pytest.mark.parametrize(
    "reduces",
    [[COUNTS, ALL], [COUNTS, SUM, EACH], [SUM, RANKED, ALL, EACH], [REFINED, COUNTS, ALIKE, EACH]],
)
def test_each_aggregate_is_that_of_a_run_with_this_reduce_alone(reduces):
    context, stages = run(*reduces)
    assert context.store.run(RUN).status is RunStatus.SUCCEEDED
    alone = [run(one) for one in reduces]
    found = aggregated(context)
    assert list(found) == [one["name"] for one in reduces]
    for one, (other, _) in zip(reduces, alone, strict=True):
        assert found[one["name"]] == aggregated(other)[one["name"]]
        assert found[one["name"]], "there is something to compare"
    assert stages == max(count for _, count in alone), "the stages are shared"
    map_calls = len(TEXTS)
    of_reduces = sum(len(other.asked) - map_calls for other, _ in alone)
    assert len(context.asked) == map_calls + of_reduces, "the map is paid for once"


def test_an_aggregate_of_a_list_is_that_of_a_job_with_the_reduce_alone():
    context, _ = run(SUM, COUNTS)
    single = FakeContext(**SMALL, aggregate_prompt="SUM {input}", aggregate_max_tokens=30)
    processed(single)
    assert aggregated(context)["sum"] == aggregated(single)
    asked = [[one for one in some.asked if "SUM" in one] for some in (context, single)]
    assert sorted(asked[0]) == sorted(asked[1]), (
        "also its prompts: the cache has the answers of both"
    )


def test_a_reduce_that_fails_does_not_take_the_others_with_it():
    def refused(request):
        if "SUM" in request.prompt:
            raise LLMError(ErrorKind.CONTENT_FILTER, "no")
        return answered(request)

    context, _ = run(SUM, COUNTS, EACH, answer=refused)
    state = context.store.run(RUN)
    assert state.status is RunStatus.FAILED
    assert state.error.startswith("reduce sum: no aggregate could be made: content_filter: no")
    found = aggregated(context)
    assert found["sum"] is None
    assert found["counts"] == [{"count": 60}]
    assert len(found["each"]) == 60
    assert {one.reduce for one in context.result.all_errors} == {"sum"}


@pytest.mark.parametrize("fields", [{}, {"group_by": "document"}])
def test_one_whose_prompts_do_not_fit_says_so_and_the_others_go_on(fields):
    large = {"name": "large", "llm": "x" * 9_000 + "{input}", **fields}
    context, _ = run(large, SUM)
    assert "reduce large: context_tokens: the context window of 900" in context.store.run(RUN).error
    found = aggregated(context)
    assert found["large"] is None
    assert found["sum"].startswith("sum n=")


@pytest.mark.parametrize("others", [[SUM], [SUM, RANKED, COUNTS], [EACH], [REFINED], [COUNTS]])
def test_a_function_without_vectors_is_the_reason_beside_any_other_reduce(others):
    fields = {**SMALL, "context_tokens": 600, "embed": "a.b:c", "retries": {"max_attempts": 1}}
    context: Any = FakeContext(**fields, reduce=[ALIKE, *others])
    context.models.made["a.b:c"] = CallableLLM(lambda _texts: 1 / 0)
    context.loop = LoopThread()
    processed(context)
    state, found = context.store.run(RUN), aggregated(context)
    why = "embed: a.b:c made no vectors of answers: internal: ZeroDivisionError"
    assert why in state.error
    assert state.error.count("reduce ") == 1, "only this one"
    assert found.pop("alike") is None
    assert all(found.values())
    coverage = context.result.named["alike"].aggregates[""].coverage
    assert (coverage.branches, coverage.branches_behind) == (60, 0)
    assert coverage.problem.startswith(why)


def test_each_reduce_of_a_list_folds_in_its_own_way():
    context, _ = run(REFINED, ALIKE, SUM)
    total = sum(range(60))
    assert aggregated(context) == dict.fromkeys(["refined", "alike", "sum"], f"sum n={total}")
    assert any("The first is the answer so far" in one for one in context.asked)


def test_a_chain_that_cannot_go_on_does_not_take_the_others_with_it():
    def long(request):
        return json.dumps("long " * 900) if "REFINE" in request.prompt else answered(request)

    typed = {"aggregate_prompt": "REFINE {input}", "aggregate_schema": {"type": "string"}}
    refined = {**REFINED, "llm": {"fold": "refine", **typed}}
    context, _ = run(refined, SUM, COUNTS, answer=long)
    assert "reduce refined: context_tokens: the answer so far leaves" in (
        context.store.run(RUN).error
    )
    found = aggregated(context)
    assert found["refined"] is None
    assert found["sum"] == f"sum n={sum(range(60))}"


def test_a_late_copy_of_the_aggregate_of_the_map_changes_nothing():
    context = FakeContext(**SMALL, reduce=[REFINED, SUM, EACH])
    context.answer = answered
    context.write(TEXTS, max_branches=20)
    stage = 0
    while not context.store.run(RUN).has_ended:
        context.process(stage=stage)
        aggregate(context, StageId(RUN, 0))
        stage += 1
    whole, stages = run(REFINED, SUM, EACH)
    assert (aggregated(context), stage) == (aggregated(whole), stages)


def test_the_fold_that_scores_answers_is_for_a_job_without_a_list():
    one = {"name": "a", "llm": "{input}", "fold": "map_rerank"}
    with pytest.raises(SpecError, match=r"reduce\.a\.fold: 'map_rerank' gives all answers"):
        make_spec(model="fake", prompt="{input}", reduce=[one])
    grouped = {**one, "fold": "refine", "group_by": "document"}
    with pytest.raises(SpecError, match=r"reduce\.a\.group_by: fold 'refine' makes one aggregate"):
        make_spec(model="fake", prompt="{input}", reduce=[grouped])
    with pytest.raises(SpecError, match=r"reduce\.b\.fold: has no effect with vote"):
        make_spec(
            model="fake", prompt="{input}", reduce=[{"name": "b", "vote": "x", "fold": "refine"}]
        )


def test_a_retry_makes_all_aggregates_again():
    failing = {"answer 7 of "}

    def sometimes(request):
        if request.prompt in failing:
            raise LLMError(ErrorKind.CONTENT_FILTER, "no")
        return answered(request)

    context, _ = run(SUM, COUNTS, EACH, answer=sometimes)
    assert aggregated(context)["counts"] == [{"count": 59}]
    failing.clear()
    assert retry_failed(context.store, context.publisher, RUN, None) == 1
    base = context.store.run(RUN).base_stage
    stage = 0
    while not context.store.run(RUN).has_ended:
        context.process(stage=stage)
        stage = max(stage, base) + 1
    whole, _ = run(SUM, COUNTS, EACH)
    assert aggregated(context) == aggregated(whole)


@pytest.mark.parametrize(
    ("reduces", "words"),
    [
        ([{"name": "a", "vote": {"k": 3}}], "reduce.a.k: has no effect with vote, which reads by"),
        ([{"name": "a"}], "reduce.a: does not say how: give it one of concat, merge"),
        ([{"name": "a", "votes": {}}], "did you mean vote?"),
        ([{"vote": None}], "reduce.1.name: is required (reduce 1 of the list)"),
        ([{"name": "a", "table": {}}], "reduce.a.by: a table needs by or measures"),
        ([{"name": "a", "vote": {}, "table": "x"}], "reduce.a: has vote and table"),
        (
            [{"name": "a", "vote": {"reduce": "table", "by": "x"}}],
            "reduce.a: has vote and table",
        ),
        ([{"name": "a", "vote": {"by": "x"}, "by": "y"}], "reduce.a.by: is given twice"),
        ([{"name": "a/b", "vote": {}}], "reduce.a/b.name: must be a name of letters"),
        ([COUNTS, {**COUNTS, "name": "Counts"}], "reduce.counts.name: two reduces have this name"),
        (["vote"], "reduce.1: must be a mapping of fields"),
        ([{"name": "a", "llm": {"prompt": "x"}}], "did you mean aggregate_prompt?"),
        ([{"name": "a", "llm": {}}], "reduce.a.aggregate_prompt: is required"),
        ([{"name": "a", "best": "x"}], "reduce.a.reduce: best needs several answers"),
        ([{"name": "a", "vote": {}, "group_by": "aspect"}], "reduce.a.group_by: 'aspect' needs aspects"),
        ([{"name": "a", "top": {"k": 0}}], "reduce.a.k: must be 1 or more (got 0)"),
        ([{"name": "a", "vote": {"chunk_tokens": 3}}], "is a field of the job, and not of a reduce"),
        ([{"name": "a", "llm": "{input}", "sources": True}], "is a field of the job, and not of a reduce"),
        ([{"name": "a", "pairwise": {}, "model": "fake"}], "did you mean judge_model?"),
        ([{"name": "a", "pairwise": {}}], "reduce.a.criteria: pairwise needs criteria"),
        ([{"name": "a", "vote": 1}], "vote: must be by (a text or a list), or a mapping of its fields"),
        ([{"name": "a", "llm": 5}], "reduce.a.llm: must be aggregate_prompt (a text), or a mapping"),
        ([{"name": "a", "concat": 5}], "reduce.a.concat: must be a mapping of its fields"),
        ([{"name": "a", "vote": {}, "rank": {}}], "has vote and rank; give it one of the two"),
        ([{"name": "a", "vote": []}], "reduce.a.by: the list is empty"),
        ([{"name": "a", "table": {"by": "x", "measures": []}}], "reduce.a.measures: the list is empty"),
        ([{"name": "a", "table": "x", "measures": ()}], "reduce.a.measures: the list is empty"),
        ([{"name": "a", "none": None}], "reduce.a: none makes no aggregate, and has no place in a list"),
        ([{"name": "a", "reduce": "none"}], "reduce.a: none makes no aggregate"),
        (["vote"], "such as {name: votes, vote: output} (got 'vote')"),
        ({"name": "a", "vote": None}, "reduce: must be the name of one, or a list of reduces: put a dash"),
        ([COUNTS, {"name": "COUNTS", "vote": None}], "upper and lower case count as the same"),
        ([{"name": "x" * 5_000, "vote": None}], "reduce.1.name: "),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_reduce_is_said_with_its_name_and_field(reduces, words):
    with pytest.raises(SpecError) as caught:
        make_spec(model="fake", prompt="{input}", reduce=reduces)
    assert words in str(caught.value)


@pytest.mark.parametrize("fields", [{"sources": True}, {"context_tokens": 900}])
def test_a_field_that_no_reduce_of_a_list_reads_is_refused_with_their_kinds(fields):
    spec = make_spec(model="fake", prompt="{input}", reduce=[COUNTS], **fields)
    words = (
        r"has no effect with the reduces of the list \(table\); leave it out, or add one with llm"
    )
    with pytest.raises(SpecError, match=words):
        require_used(spec)


def test_reduces_are_stored_with_their_empty_fields():
    spec = make_spec(model="fake", prompt="{input}", reduce=[COUNTS, {"name": "v", "vote": None}])
    assert stored_spec(spec.model_dump_json()).reductions == spec.reductions


@pytest.mark.parametrize("fields", [{"by": "x"}, {"group_by": "document"}, {"fold": "refine"}])
def test_a_field_of_a_single_reduce_is_refused_beside_a_list(fields):
    with pytest.raises(SpecError, match="has no effect beside a list of reduces"):
        make_spec(model="fake", prompt="{input}", reduce=[COUNTS], **fields)


def test_a_list_and_a_single_reduce_are_not_given_both():
    with pytest.raises(SpecError, match="reduce: give either a list of reduces, or one"):
        make_spec(model="fake", prompt="{input}", reduce=[COUNTS], aggregate_prompt="{input}")
