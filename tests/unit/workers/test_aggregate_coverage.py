"""What is behind an aggregate, and the aggregates that say that too little is."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from fanout.client.run_answers import RunAnswers
from fanout.core.errors import LLMError
from fanout.core.records import ErrorKind, RunStatus
from fanout.runs.answer_text import source_lines
from tests.fakes import RUN, FakeContext

ONCE = {"retries": {"max_attempts": 1}, "cache": False}


def ended(texts, fails, columns=None, **fields):
    """Return a run to its end; texts with one of some words fail."""

    def answer(request):
        if any(word in request.prompt for word in fails):
            return LLMError(ErrorKind.CONTENT_FILTER, "no")
        return f"SUM of {request.prompt.count('answer')}" if "SUM" in request.prompt else "answer"

    context = FakeContext(**{**ONCE, **fields})
    context.answer = answer
    context.write(texts, **({} if columns is None else {"columns": columns}))
    stage = 0
    while not context.store.run(RUN).has_ended:
        context.process(stage=stage)
        stage += 1
    return RunAnswers(RUN, context.store), context


def test_every_reduce_says_what_is_behind_it():
    for fields in ({"reduce": "concat"}, {"reduce": "vote"}, {"aggregate_prompt": "SUM {input}"}):
        result = ended(["a", "b", "bad", "c"], ["bad"], **fields)[0].result()
        coverage = result.aggregate_coverage
        assert (coverage.branches, coverage.branches_behind) == (4, 3)
        assert (coverage.documents, coverage.documents_behind) == (4, 3)
        assert coverage.missing == {"content_filter": 1}
        assert result.to_dict()["aggregate_coverage"]["share"] == 0.75
    assert result.notes == [
        "behind it: 3 of 4 branches (75.0%), 3 of 4 documents; failed: content_filter 1"
    ]


@pytest.mark.parametrize("fields", [{"reduce": "concat"}, {"aggregate_prompt": "SUM {input}"}])
def test_a_group_with_too_little_behind_it_says_so_in_place_of_an_answer(fields):
    run, context = ended(
        ["a", "bad", "c"], ["bad"], min_group_success=0.9, group_by="document", **fields
    )
    result = run.result()
    assert result.status is RunStatus.SUCCEEDED
    assert result.aggregated["d1"] is None
    assert result.aggregated["d0"]
    assert result.aggregated["d2"]
    assert result.aggregate_coverage["d1"].problem.startswith("too little is behind it (min_group")
    assert result.aggregate_coverage["d0"].problem is None
    assert result.reduce_errors == []
    is_llm = "aggregate_prompt" in fields
    assert context.llm.calls == 3 + 2 * is_llm, "no call is made for what is known to be too little"
    assert [note for note in result.notes if note.startswith("d1: no aggregate: too little")]


@pytest.mark.parametrize("fields", [{"reduce": "vote"}, {"aggregate_prompt": "SUM {input}"}])
def test_a_run_with_too_little_behind_its_aggregate_fails_without_further_calls(fields):
    run, context = ended(["a", "bad", "c"], ["bad"], min_group_success=0.9, **fields)
    result = run.result()
    assert result.status is RunStatus.FAILED
    assert "no aggregate could be made: too little is behind it" in result.error
    assert result.aggregated is None
    assert result.aggregate_coverage.branches_behind == 2
    assert context.llm.calls == 3


@pytest.mark.parametrize("reduce", [{"concat": None}, {"llm": "SUM {input}"}])
def test_the_reason_is_said_once_and_of_groups_with_the_name_of_the_last(reduce):
    fields = {"min_group_success": 0.9, "reduce": [{"name": "one", **reduce}]}
    run, _ = ended(["a", "bad", "c"], ["bad"], **fields)
    stored = run.stored_aggregate()
    assert "".join(stored.texts()).startswith("# one\n\n(no aggregate: too little is behind it")
    assert any("too little" in note for note in stored.each_note())
    told = "".join(stored.each_note(has_reasons=False))
    assert "too little" not in told, "the text has it"
    run, _ = ended(
        ["a", "bad", "a", "bad"],
        ["bad"],
        min_group_success=0.9,
        reduce=[{"name": "one", **reduce, "group_by": "column.g"}],
        columns=[{"g": "x"}, {"g": "x"}, {"g": "y"}, {"g": "y"}],
    )
    error = run.result().error
    assert error.startswith("reduce one: no aggregate could be made: y: too little is behind it")


def test_failed_calls_of_the_reduce_count_against_it():
    texts = [f"{'poor ' if n < 40 else ''}text {n} " + "x" * 60 for n in range(80)]
    fields = {
        "aggregate_prompt": "SUM {input}",
        "context_tokens": 700,
        "aggregate_max_tokens": 20,
        "tokenizer": "bytes/4",
    }

    def run(least):
        context = FakeContext(**ONCE, **fields, min_group_success=least)

        def answer(request):
            if not request.prompt.startswith("SUM"):
                return request.prompt
            is_poor = "poor" in request.prompt
            return LLMError(ErrorKind.CONTEXT_LENGTH, "no") if is_poor else "a sum"

        context.answer = answer
        context.write(texts)
        stage = 0
        while not context.store.run(RUN).has_ended:
            context.process(stage=stage)
            stage += 1
        return RunAnswers(RUN, context.store).result()

    result = run(0.0)
    coverage = result.aggregate_coverage
    assert result.aggregated == "a sum"
    assert coverage.branches == coverage.documents == 80
    assert coverage.branches_behind == coverage.documents_behind < 41
    assert coverage.lost == {"context_length": 80 - coverage.branches_behind}
    result = run(0.6)
    assert result.status is RunStatus.FAILED
    assert result.aggregated is None
    assert "lost with failed calls of the reduce: context_length" in result.error


@pytest.mark.parametrize("fold", ["tree", "refine"])
def test_an_aggregate_whose_call_failed_says_why_in_place_of_an_answer(fold):
    run, _ = ended(["a", "b"], ["SUM"], aggregate_prompt="SUM {input}", fold=fold)
    result = run.result()
    assert (result.status, result.aggregated) == (RunStatus.FAILED, None)
    assert result.aggregate_coverage.problem == "content_filter: no (after 1 call)"
    assert result.error.endswith(result.aggregate_coverage.problem)
    assert result.aggregate_coverage.branches_behind == 0
    assert result.notes == ["no aggregate: content_filter: no (after 1 call)"]


def test_a_chain_that_says_nothing_has_a_reason():
    run, _ = ended(["a"], [], aggregate_prompt="SUM {input}", fold="refine", max_reasks=0)
    assert run.result().aggregate_coverage.problem is None
    context = FakeContext(**ONCE, aggregate_prompt="SUM {input}", fold="refine")
    context.answer = lambda request: "NOTHING TO ADD" if "SUM" in request.prompt else "answer"
    context.write(["a", "b"])
    for stage in range(2):
        context.process(stage=stage)
    result = RunAnswers(RUN, context.store).result()
    assert (result.status, result.aggregated) == (RunStatus.FAILED, None)
    why = "no call had anything to say of the answers"
    assert result.aggregate_coverage.problem == why
    assert result.notes == ["1 call had nothing to add", f"no aggregate: {why}"]


def test_the_list_of_sources_tells_no_aggregate_from_one_that_cites_nothing():
    job = {"aggregate_prompt": "SUM {input}", "group_by": "document", "sources": True}
    run, _ = ended(["a", "bad"], [], **job)
    stored = run.stored_aggregate()
    assert list(source_lines(run.sources(), stored.coverage())) == [
        "", "Sources:", "  d0", "    (it cites none)", "  d1", "    (it cites none)",
    ]  # fmt: skip
    run, _ = ended(["a", "bad"], ["(d1)"], **job)
    stored = run.stored_aggregate()
    assert list(source_lines(run.sources(), stored.coverage())) == [
        "", "Sources:", "  d0", "    (it cites none)", "  d1", "    (no aggregate)",
    ]  # fmt: skip
    assert "(no aggregate: content_filter: no (after 1 call))" in "".join(stored.texts())
    alone = run.aggregate_coverage()["d1"]
    assert list(source_lines([], alone))[2:] == ["  (no aggregate)"]


COMPARED: list[dict[str, Any]] = [
    {"reduce": "pairwise", "criteria": ["the best"]},
    {"reduce": "best", "criteria": ["the best"], "samples": 2},
]


def compared(texts, **fields):
    """Return a run whose answers are compared, with its context; texts with the word bad fail."""

    def answer(request):
        if request.shape is not None:
            return '{"reasons": "", "winner": "A"}'
        if "bad" in request.prompt:
            return LLMError(ErrorKind.CONTENT_FILTER, "no")
        return f"{request.prompt} {next(numbers)}"

    numbers = count()
    context = FakeContext(**{**ONCE, **fields})
    context.answer = answer
    context.write(texts)
    stage = 0
    while not context.store.run(RUN).has_ended:
        context.process(stage=stage)
        stage += 1
    return RunAnswers(RUN, context.store).result(), context


@pytest.mark.parametrize("fields", COMPARED)
def test_a_comparison_says_what_is_behind_it(fields):
    result, _ = compared(["a", "bad", "c"], **fields)
    coverage = result.aggregate_coverage
    each = fields.get("samples", 1)
    assert (coverage.branches, coverage.branches_behind) == (3 * each, 2 * each)
    assert (coverage.documents, coverage.documents_behind) == (3, 2)
    assert coverage.missing == {"content_filter": each}
    assert result.aggregated


@pytest.mark.parametrize("fields", COMPARED)
def test_nothing_is_compared_for_an_aggregate_with_too_little_behind_it(fields):
    result, context = compared(["a", "bad", "c"], min_group_success=0.9, **fields)
    assert result.status is RunStatus.FAILED
    assert "too little is behind it" in result.error
    assert result.aggregated is None
    assert context.llm.calls == 3 * fields.get("samples", 1)


def test_groups_are_compared_that_have_enough_behind_them():
    fields = {**COMPARED[0], "group_by": "document", "samples": 2}
    result, _ = compared(["a", "bad", "c"], min_group_success=0.9, **fields)
    assert result.status is RunStatus.SUCCEEDED
    assert [len(result.aggregated[name] or ()) for name in ("d0", "d1", "d2")] == [2, 0, 2]
    assert result.aggregate_coverage["d1"].problem.startswith("too little is behind it")
