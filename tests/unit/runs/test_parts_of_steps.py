"""Aggregates and evaluations that go by the answers of steps which are not the output."""

from __future__ import annotations

import pytest

from fanout.aggregators import aggregate_groups
from fanout.aggregators.parts import Fields
from fanout.core.errors import SpecError
from fanout.core.records import Chunk, ErrorKind, Outcome, StepOutcome
from fanout.core.spec import make_spec
from fanout.inputs.intake import checked_documents
from fanout.runs.evaluation import evaluate
from tests.unit.runs.test_step_columns import branch, ran
from workers.reduce.items import item_of

FACTS = {
    "type": "object",
    "properties": {"days": {"type": "integer"}, "ok": {"type": "boolean"}},
    "required": ["days", "ok"],
}
STEPS = [
    {"name": "kind", "prompt": "{input}", "choices": ["bill", "letter"]},
    {"name": "facts", "prompt": "{input}", "schema": FACTS},
    {"name": "code", "function": "package.module:function"},
    {"name": "note", "prompt": "{facts.days}", "when": {"kind": "bill"}},
    {"name": "other", "prompt": "{facts.days}", "when": {"kind": "letter"}},
]
KINDS = ("bill", "letter", "bill", "letter")


def spec_of(**fields):
    return make_spec(model="fake", steps=STEPS, **fields)


def outcome(index, kind):
    facts = f'{{"days": {index}, "ok": {"true" if index else "false"}}}'
    steps = (
        StepOutcome(name="kind", output=kind),
        StepOutcome(name="facts", output=facts, is_json=True),
        StepOutcome(name="code", output=str(10 * index)),
    )
    # The last one has failed after these.
    if index == len(KINDS) - 1:
        failed = StepOutcome(name="other", output=None, kind=ErrorKind.TIMEOUT)
        return Outcome(index=index, kind=ErrorKind.TIMEOUT, message="m", steps=(*steps, failed))
    last = StepOutcome(name="note" if kind == "bill" else "other", output=f"n{index}")
    return Outcome(index=index, output=last.output, steps=(*steps, last))


def aggregate(**fields):
    spec = spec_of(**fields)
    (reduce,) = spec.reductions
    items = [
        item_of(
            spec, reduce, Chunk(text="t", document=f"d{at}", document_index=at), outcome(at, kind)
        )
        for at, kind in enumerate(KINDS)
    ]
    goes_by = Fields(
        by=spec.by, measures=spec.measures, k=spec.k, schema=spec.answer_schema,
        choices=spec.answer_choices, steps=spec.step_names,
    )  # fmt: skip
    made = aggregate_groups(spec.reduction, items, goes_by)
    return {group: one.value for group, one in made.items()}


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        (
            {"reduce": "table", "by": ["steps.kind"], "measures": ["count", "mean:steps.facts.days"]},
            [
                {"steps.kind": "bill", "count": 2, "mean:steps.facts.days": 1.0},
                {"steps.kind": "letter", "count": 1, "mean:steps.facts.days": 1.0},
            ],
        ),
        # A text that is a number, as a cell of a CSV file is one.
        ({"reduce": "table", "measures": ["sum:steps.code"]}, [{"sum:steps.code": 30}]),
        (
            {"reduce": "table", "by": ["steps.note"]},
            [{"steps.note": "n0", "count": 1}, {"steps.note": "n2", "count": 1},
             {"steps.note": None, "count": 1}],
        ),
    ],
)  # fmt: skip
def test_a_table_goes_by_the_answers_of_steps(fields, found):
    assert aggregate(**fields) == {"": found}


def test_a_vote_a_top_and_groups_go_by_steps():
    vote = aggregate(reduce="vote", by="steps.kind")[""]
    assert (vote["winner"], vote["votes"]) == ("bill", {"bill": 2, "letter": 1})
    [first, *_] = aggregate(reduce="top", by="steps.facts.days", k=1)[""]
    assert (first["output"], first["score"]) == ("n2", 2)
    # A branch that failed later is in the group of its answer.
    assert list(aggregate(reduce="vote", group_by="steps.kind")) == ["bill", "letter"]
    assert list(aggregate(reduce="vote", group_by="steps.facts.ok")) == ["false", "true"]
    assert list(aggregate(reduce="vote", group_by="steps.note")) == ["n0", "(no steps.note)", "n2"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"reduce": "vote", "by": "steps.king"},
            "by: there is no step 'steps.king'; did you mean steps",
        ),
        (
            {"reduce": "vote", "by": "steps.kind.a"},
            "by: step 'kind' answers with a label, which has no",
        ),
        ({"reduce": "vote", "by": "steps.facts.a"}, "has no field 'a'; its fields: days, ok"),
        (
            {"reduce": "vote", "by": "steps.facts.ok.a"},
            "has no field 'ok.a'; did you mean ok? its fields",
        ),
        (
            {"reduce": "vote", "group_by": "steps.facts.ok.a"},
            "group_by: the answer of step 'facts' has",
        ),
        ({"reduce": "vote", "group_by": "steps.king"}, "group_by: there is no step 'steps.king'"),
        (
            {"reduce": "vote", "group_by": "steps.facts.a"},
            "group_by: the answer of step 'facts' has no",
        ),
        (
            {"reduce": "vote", "group_by": "king"},
            "known: aspect, document, model, steps.code, steps.fac",
        ),
        (
            {"reduce": "table", "measures": "mean:steps.kind"},
            "'steps.kind' is a label, and no number",
        ),
        ({"reduce": "table", "measures": "mean:steps.facts.ok"}, "no number by the schema"),
        (
            {"labels": {"steps.king": "a"}},
            "labels: there is no step 'steps.king' (known: steps.kind, ",
        ),
        ({"labels": {"steps.facts": "a"}}, "as steps.facts.days=a, or {steps.facts.days: a}"),
        ({"labels": {"steps.kind.a": "a"}}, "labels: answers have no fields, and so no 'a'"),
        (
            {"reduce": "vote", "by": "steps.note.x"},
            "by: step 'note' answers with a text, which has no",
        ),
        (
            {"labels": {"kind": "a"}},
            "labels: the output has no field 'kind'; did you mean steps.kind?",
        ),
    ],
)
def test_a_step_that_is_not_there_is_named_with_those_that_are(fields, message):
    with pytest.raises(SpecError) as raised:
        list(checked_documents(spec_of(**fields), ["text"]))
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("measure", "words"),
    [
        ("mean:steps.note", "measures: step 'note' answers with a text"),
        ("mean:steps.facts.days", None),
    ],
)
def test_a_measure_of_a_text_is_told_before_the_run(measure, words):
    told = []
    spec = spec_of(reduce="table", by="steps.kind", measures=measure)
    list(checked_documents(spec, ["text"], notify=told.append))
    assert [notice.text.startswith(words or "") for notice in told] == [True] * (words is not None)


def test_labels_are_compared_with_the_answer_of_a_step_also_of_a_branch_that_failed_later():
    spec = spec_of(labels={"steps.kind": "truth", "steps.facts.ok": "fine"})
    assert spec.labels == {"steps.kind": "truth", "steps.facts.ok": "fine"}
    done = [ran("kind", "bill"), ran("facts", {"days": 1, "ok": True}, is_json=True)]
    columns = {"truth": "Bill", "fine": "no"}
    branches = [
        branch(spec, *done, ran("note", "n"), output="n", columns=columns),
        branch(spec, *done, output=None, kind=ErrorKind.TIMEOUT, columns=columns),
        branch(spec, output=None, kind=ErrorKind.TIMEOUT, columns=columns),
    ]
    found = evaluate(spec, branches)
    assert [(one.field, one.count, one.answered, one.correct) for one in found.variants] == [
        ("steps.kind", 3, 2, 2),
        ("steps.facts.ok", 3, 2, 0),
    ]
