"""The reduce resolve on a fake server: calls about pairs of values, whose state is in the stages only."""

from __future__ import annotations

import asyncio
import json
import re

import pytest

import workers.reduce.resolving
from fanout.core.errors import SpecError
from fanout.core.ids import StageId
from fanout.core.records import RunStatus
from fanout.core.spec import make_spec
from fanout.policy.resolution import candidates
from fanout.runs.comparison_estimate import resolution_calls
from fanout.runs.retried_runs import retry_failed
from tests.fakes import RUN, FakeContext, run_branch
from tests.unit.workers.test_clustering import write_map
from tests.unit.workers.test_comparisons import Deaths, through
from workers.reduce.stages import aggregate, collect

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
DIFFER = "differ in more than case and punctuation"


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
    assert made.notes == [f"5 values {DIFFER}; 2 pairs were compared by fake"]
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
    assert "1 answer has no text in firms.*: d0" in context.result.aggregates[""].notes


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


ONE_OF_THREE = {"type": "string", "enum": ["a", "b", "c"]}


def object_of(**fields):
    return {"type": "object", "properties": fields, "required": [*fields]}


@pytest.mark.parametrize(
    ("fields", "most"),
    [
        ({"choices": ["a", "b", "c"]}, 3),
        ({"schema": object_of(kind=ONE_OF_THREE), "by": "kind"}, 3),
        ({"schema": object_of(kinds={"type": "array", "items": ONE_OF_THREE}), "by": "kinds.*"}, 3),
        ({"schema": object_of(kind={"anyOf": [ONE_OF_THREE, {"enum": ["d"]}]}), "by": "kind"}, 6),
        ({"schema": object_of(kind={"anyOf": [ONE_OF_THREE, {"type": "string"}]}), "by": "kind"}, 45),
        ({"schema": object_of(kind={"type": "string"}), "by": "kind"}, 45),
        # Each answer may have any number of values.
        ({"schema": object_of(kinds={"type": "array", "items": {"type": "string"}}), "by": "kinds.*"}, 70),
        ({"by": "kinds.*"}, 70),
        ({"choices": ["a", "b", "c"], "by": "column.firm"}, 45),
        # Each group has values of its own.
        ({"choices": ["a", "b", "c"], "group_by": "document"}, 45),
    ],
)  # fmt: skip
def test_no_more_calls_are_estimated_than_there_are_pairs_of_labels(fields, most):
    job = {"model": "fake", "prompt": "{input}", "reduce": "resolve", "by": "output"}
    spec = make_spec(**{**job, "max_pairs": 70, **fields})
    calls = resolution_calls(spec, spec.reductions[0], 10)
    assert (calls.calls_likely, calls.calls_high) == (min(10, most), most)


def test_each_group_has_its_own_things():
    context = resolving(group_by="column.land")
    rows_of = [
        ("it", "Acme Corp"),
        ("uk", "Acme Corporation"),
        ("it", "Acme Corporation"),
        ("uk", "Zebra"),
    ]
    context.write(
        [json.dumps({"firm": firm}) for _, firm in rows_of],
        columns=[{"land": one} for one, _ in rows_of],
    )
    stage = 0
    while not context.store.run(RUN).has_ended:
        context.process(stage=stage)
        stage += 1
    made = context.result.aggregates
    assert {group: [row["members"] for row in one.value] for group, one in made.items()} == {
        "it": [{"Acme Corp": 1, "Acme Corporation": 1}],
        "uk": [{"Acme Corporation": 1}, {"Zebra": 1}],
    }
    assert context.store.stage(StageId(RUN, 1)).total == 1, "no pair is of two groups"
    assert [one.coverage.branches for one in made.values()] == [2, 2]
    assert made["it"].notes == [f"2 values {DIFFER}; 1 pair was compared by fake"]
    assert made["uk"].notes == [f"2 values {DIFFER}; 0 pairs were compared by fake"]


def test_answers_without_fields_stop_the_run_after_its_first_shard():
    context = resolving(by="company", output_format="text")
    context.write([f"firm {n}" for n in range(60)], max_branches=20)
    store = context.store
    store.open_shards(StageId(RUN, 0), window=9)
    first = StageId(RUN, 0).shard(0)
    for position in range(20):
        run_branch(context, first.branch(position))
    collect(context, [], first)
    run = store.run(RUN)
    assert run.halt is RunStatus.FAILED
    assert run.error.startswith("by: none of 20 answers has a field 'company'")
    calls = context.llm.calls
    context.process()
    assert context.llm.calls == calls, "no further call is made"
    assert store.run(RUN).status is RunStatus.FAILED
    assert "'company'" in store.run(RUN).error
    # What has been seen of one shard is no proof, so a retry gets to the end.
    assert retry_failed(store, context.publisher, RUN, None)
    context.process()
    assert context.llm.calls == calls + 40
    assert store.run(RUN).error.startswith("no aggregate could be made: by: none of 60 answers")


OPTIONAL = {
    "type": "object",
    "properties": {"firm": {"type": "string"}, "n": {"type": "integer"}},
    "required": ["n"],
}


@pytest.mark.parametrize("fields", [{}, {"schema": OPTIONAL}])
def test_a_field_that_the_answers_of_the_first_shard_lack_stops_nothing(fields, caplog):
    context = resolving(**fields)
    without = [json.dumps({"n": n}) for n in range(25)]
    through(
        context, [*without, *(json.dumps({"n": 1, "firm": one}) for one in FIRMS)], max_branches=25
    )
    assert context.store.run(RUN).status is RunStatus.SUCCEEDED
    assert [row["count"] for row in context.result.aggregates[""].value] == [4, 2, 1]
    logged = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert len(logged) == 1
    assert logged[0].startswith(f"run {RUN} goes on, but by: none of 25 answers has a field 'firm'")


def test_a_field_that_is_empty_in_the_first_answers_stops_no_run():
    context = resolving(by="firm.*")
    answers_of = [{"firm": []}] * 25 + [{"firm": ["Acme"]}]
    through(context, [json.dumps(one) for one in answers_of], max_branches=20)
    assert rows(context) == [("Acme", 1, {"Acme": 1})]


def test_few_answers_without_the_field_end_the_run_with_the_reason():
    context = resolving(by="company")
    through(context, texts())
    assert "no aggregate could be made: by: none of 7 answers" in context.store.run(RUN).error
    assert context.llm.calls == 7


def test_no_pair_is_asked_for_a_group_with_too_little_behind_it():
    context = resolving(min_group_success=0.9, retries={"max_attempts": 1})
    answer = context.answer
    context.answer = lambda request: (
        ValueError("no") if "Zebra" in request.prompt else answer(request)
    )
    through(context, texts())
    assert "too little is behind it" in context.store.run(RUN).error
    assert context.llm.calls == 7


def test_of_a_group_with_too_little_behind_it_no_values_are_said_to_be_there():
    """They are not looked at: `0 different values` would be false."""
    context = resolving(group_by="document", min_group_success=0.9, retries={"max_attempts": 1})
    answer = context.answer
    context.answer = lambda request: (
        ValueError("no") if "Zebra" in request.prompt else answer(request)
    )
    through(context, texts())
    made = context.result.aggregates
    assert any(one.problem for one in made.values())
    for one in made.values():
        assert any("compared by fake" in note for note in one.notes) == (one.problem is None)


def test_the_search_for_pairs_stops_with_its_run(monkeypatch):
    context = resolving()
    map_id = write_map(context, texts())

    def cancelled(*values, **how):
        context.store.halt(RUN, RunStatus.CANCELLED)
        return candidates(*values, **how)

    monkeypatch.setattr(workers.reduce.resolving, "candidates", cancelled)
    aggregate(context, map_id)
    assert context.store.run(RUN).status is RunStatus.CANCELLED
    assert context.store.stage(StageId(RUN, 1)).total == 0


def test_a_retry_keeps_for_the_comparisons_what_they_will_need_and_calls_nobody_in_vain():
    names = ["alpha corp", "alpha corporation", *(chr(ord("b") + at) * 9 for at in range(22))]
    context = resolving(budget={"calls": 32})
    through(context, texts(names))
    asyncio.run(context.budgets.aclose())
    first = context.store.stage(StageId(RUN, 0))
    # Half of the calls were kept for one comparison.
    assert (first.succeeded, context.store.budget(RUN).spent.calls) == (16, 17)
    assert retry_failed(context.store, context.publisher, RUN, None) == 8
    stage = 0
    while not context.store.run(RUN).has_ended:
        context.process(stage=stage)
        stage = max(stage, context.store.run(RUN).base_stage) + 1
    asyncio.run(context.budgets.aclose())
    assert context.store.stage(StageId(RUN, 0)).succeeded == 24
    assert len(rows(context)) == 23
    assert context.store.budget(RUN).spent.calls == 17 + 8 + 1
