"""The reduce resolve on a fake server: calls about pairs of values, whose state is in the stages only."""

from __future__ import annotations

import json
import re

import pytest

from fanout.core.errors import SpecError
from fanout.core.ids import StageId
from fanout.core.records import RunStatus
from fanout.core.spec import make_spec
from fanout.runs.comparison_estimate import resolution_calls
from fanout.runs.retried_runs import retry_failed
from tests.fakes import RUN, FakeContext
from tests.unit.workers.test_comparisons import Deaths, through

JOB = {"reduce": "resolve", "by": "firm", "output_format": "json", "cache": False, "fence": True}
VALUES = re.compile(
    r"<value_A[^>]*>\n(.*?)\n</value_A.*<value_B[^>]*>\n(.*?)\n</value_B", re.DOTALL
)
FIRMS = [
    "Acme Corp",
    "ACME corp.",
    "Acme Corporation",
    "Bolt Ltd",
    "Bolt Limited",
    "Zebra",
    "Acme Corp",
]


def answers(same):
    """Answer a branch with its text, and a pair with what ``same`` says of it."""

    def answer(request):
        found = VALUES.search(request.prompt)
        if found is None:
            return request.prompt
        says = same(*found.groups())
        return says if isinstance(says, Exception) else json.dumps({"reasons": "r", "same": says})

    return answer


def resolving(same=lambda one, other: one[0] == other[0], **fields):
    context = FakeContext(**{**JOB, **fields})
    context.answer = answers(same)
    return context


def texts(firms=FIRMS):
    return [json.dumps({"firm": firm}) for firm in firms]


def rows(context):
    made = context.result.aggregates[""].value
    return [(row["value"], row["count"], row["members"]) for row in made]


def test_equal_values_need_no_call_and_a_model_decides_what_is_alike():
    context = resolving()
    assert through(context, texts()) == 2
    assert rows(context) == [
        ("Acme Corp", 4, {"Acme Corp": 2, "ACME corp.": 1, "Acme Corporation": 1}),
        ("Bolt Ltd", 2, {"Bolt Ltd": 1, "Bolt Limited": 1}),
        ("Zebra", 1, {"Zebra": 1}),
    ]
    made = context.result.aggregates[""]
    assert (made.succeeded, made.failed, made.coverage.branches) == (7, 0, 7)
    assert made.notes == ["5 different values; 2 pairs were compared by fake"]
    assert context.store.stage(StageId(RUN, 1)).total == 2


def test_values_that_hold_together_by_others_are_asked_and_kept_apart_if_they_differ():
    firms = ["smith anna maria", "smith anna", "anna smith lee", "smith anna"]
    asked = []

    def same(one, other):
        asked.append({one, other})
        return {one, other} != {"smith anna maria", "anna smith lee"}

    context = resolving(same)
    through(context, texts(firms))
    assert len(asked) == 3
    assert [(value, count) for value, count, _ in rows(context)] == [
        ("smith anna", 3),
        ("smith anna maria", 1),
    ]
    assert any("contradicts itself" in note for note in context.result.aggregates[""].notes)


def test_the_elements_of_lists_are_values_and_an_answer_counts_once():
    context = resolving(by="firms.*")
    through(
        context, [json.dumps({"firms": ["Acme", "ACME", "Bolt", 7, None]}), '{"firms": ["acme"]}']
    )
    assert rows(context) == [
        ("Acme", 2, {"Acme": 1, "acme": 1}),
        ("Bolt", 1, {"Bolt": 1}),
        ("7", 1, {"7": 1}),
    ]
    assert "1 answers have no text in firms.*: d0" in context.result.aggregates[""].notes


def test_no_more_pairs_are_asked_than_the_job_allows():
    context = resolving(max_pairs=1)
    through(context, texts())
    notes = context.result.aggregates[""].notes
    assert context.store.stage(StageId(RUN, 1)).total == 1
    assert "1 less alike pair was not compared (max_pairs is 1)" in notes


def test_without_anything_alike_no_stage_is_opened():
    context = resolving()
    assert through(context, texts(["a", "b", "zebra"])) == 1
    assert [value for value, _, _ in rows(context)] == ["a", "b", "zebra"]


def test_the_same_stages_go_on_after_a_death_between_two_steps(monkeypatch):
    whole = resolving()
    stages = through(whole, texts())
    context = resolving()
    deaths = Deaths(context, monkeypatch)
    assert through(context, texts()) == stages
    assert deaths.unmet == set()
    assert context.result == whole.result
    assert context.llm.calls == whole.llm.calls


def test_a_failed_comparison_keeps_values_apart_and_a_retry_asks_again():
    fails = [True]

    def same(one, _other):
        return ValueError("no") if fails[0] and one.startswith("Bolt") else True

    context = resolving(same, retries={"max_attempts": 1})
    through(context, texts())
    assert len(rows(context)) == 4
    assert any("1 comparison failed" in note for note in context.result.aggregates[""].notes)
    fails[0] = False
    retry_failed(context.store, context.publisher, RUN, None)
    context.process(stage=0)
    context.process(stage=context.store.run(RUN).base_stage + 1)
    assert len(rows(context)) == 3


def test_if_all_comparisons_fail_there_is_no_aggregate():
    context = resolving(lambda _one, _other: ValueError("no"), retries={"max_attempts": 1})
    through(context, texts())
    run = context.store.run(RUN)
    assert run.status is RunStatus.FAILED
    assert "2 pairs of values could not be compared" in run.error


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"by": None}, "by: reduce 'resolve' needs by"),
        ({"by": "a,b"}, "by: reduce 'resolve' goes by one field"),
        (
            {"group_by": "document"},
            "group_by: reduce 'resolve' finds what is the same in all answers",
        ),
    ],
)
def test_what_does_not_fit_is_refused(fields, words):
    with pytest.raises(SpecError, match=words):
        make_spec(**{"model": "fake", "prompt": "{input}", **JOB, **fields})


def test_its_calls_are_estimated():
    spec = make_spec(model="fake", prompt="{input}", **JOB)
    calls = resolution_calls(spec, spec.reductions[0], 10)
    assert (calls.calls_low, calls.calls_likely, calls.calls_high) == (0, 10, 45)
    assert resolution_calls(spec, spec.reductions[0], 1_000_000).calls_high == spec.max_pairs
    assert resolution_calls(spec, spec.reductions[0], 0).calls_high == 0
