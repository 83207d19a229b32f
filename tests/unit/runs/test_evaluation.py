from __future__ import annotations

import dataclasses
import json
import random
from functools import partial

import msgspec
import pytest

from fanout.core.errors import SpecError
from fanout.core.records import NO_CALL, ErrorKind, RunStatus, Usage
from fanout.core.spec import make_spec
from fanout.policy.metrics import sign_test, wilson_interval
from fanout.runs.branch_output import Output
from fanout.runs.evaluation import evaluate, evaluate_by
from fanout.runs.results import Result
from tests.memory import peak_bytes

OBJECT = {
    "type": "object",
    "properties": {
        "mood": {"enum": ["good", "bad"]},
        "stars": {"type": "integer"},
        "fake": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
    },
}
FAILED = object()
USAGE = Usage(calls=1, input_tokens=30, output_tokens=10, cost_usd=0.01)


def job(**fields):
    return make_spec(**{"model": "m", "prompt": "{input}", "labels": "gold", **fields})


def branch(index, output, *, document=None, **fields):
    document = index if document is None else document
    kind = ErrorKind.TIMEOUT if output is FAILED else None
    output = None if output is FAILED else output
    return Output(
        **{
            "index": index, "document": f"d{document}", "document_index": document, "chunk": document,
            "position": 0, "start": 0, "end": 1, "aspect": None, "sample": 0, "output": output,
            "kind": kind, "message": kind, "attempts": 1, "usage": USAGE, "elapsed_s": 1.0, **fields,
        }
    )  # fmt: skip


def evaluated(pairs, spec=None, **fields):
    """Evaluate one answer for each label."""
    branches = [
        branch(at, answer, columns={"gold": label}, **fields)
        for at, (label, answer) in enumerate(pairs)
    ]
    return evaluate(spec or job(), branches)


def only(evaluation):
    assert len(evaluation.variants) == 1
    return evaluation.variants[0]


def test_a_failed_branch_is_wrong_and_one_without_a_label_does_not_count():
    found = evaluated(
        [("good", "good"), ("bad", "good"), ("bad", FAILED), ("good", "Good."), ("", "good"),
         (None, "bad"), (" ", FAILED)],
        job(choices="good,bad"),
    )  # fmt: skip
    one = only(found)
    assert (found.documents, found.unlabelled) == (4, 3)
    assert (one.count, one.answered, one.correct, one.usable) == (4, 3, 2, 0.75)
    assert one.accuracy.value == 0.5
    assert (one.accuracy.low, one.accuracy.high) == wilson_interval(2, 4)
    assert one.accuracy_answered.value == 2 / 3
    assert [(one.label, one.support, one.predicted, one.correct) for one in one.classes] == [
        ("good", 2, 3, 2), ("bad", 2, 0, 0),
    ]  # fmt: skip
    assert one.macro_f1.value == pytest.approx((4 / 5 + 0) / 2)
    assert one.confusion.counts == [[2, 0], [1, 0]]
    assert (one.confusion.other, one.confusion.failed) == ([0, 0], [0, 1])
    assert found.notes == ["not evaluated: 3 documents without a label in 'gold'"]


def test_cost_tokens_and_latency_are_those_of_a_right_answer():
    one = only(evaluated([("a", "a"), ("a", "b"), ("a", "a"), ("a", FAILED)]))
    assert one.cost_usd == pytest.approx(0.04)
    assert one.cost_per_correct_usd == pytest.approx(0.02)
    assert one.tokens_per_correct == 80
    assert (one.latency_mean_s, one.latency_per_correct_s, one.calls) == (1, 2, 1)
    free = only(evaluated([("a", "a")], usage=Usage(calls=2)))
    assert (free.cost_usd, free.cost_per_correct_usd, free.tokens_per_correct) == (None, None, None)
    assert free.calls == 2
    none_right = only(evaluated([("a", "b")]))
    assert none_right.cost_usd == 0.01
    assert none_right.cost_per_correct_usd is none_right.latency_per_correct_s is None


def test_an_answer_from_the_cache_costs_what_it_cost_when_it_was_made():
    made = evaluated([("a", "a"), ("a", "a"), ("a", "b"), ("a", "a")])
    spec, fields = job(), {"columns": {"gold": "a"}}
    cached = {**fields, "usage": NO_CALL, "saved": USAGE, "attempts": 0, "elapsed_s": 0.001}
    found = evaluate(
        spec,
        [
            branch(0, "a", **fields),
            branch(1, "a", **cached),
            branch(2, "b", **cached),
            branch(3, "a", **cached),
        ],
    )
    one, other = only(found), only(made)
    assert (one.cached, other.cached, one.calls) == (3, 0, 0.25)
    for name in ("cost_usd", "cost_per_correct_usd", "tokens_per_correct", "latency_mean_s",
                 "latency_per_correct_s"):  # fmt: skip
        assert getattr(one, name) == pytest.approx(getattr(other, name)), name
    assert found.notes == [
        "3 answers are from the cache: tokens and cost are those of when they were made"
    ]
    # Where it is not known what it had cost, it is not free.
    unknown = {**cached, "saved": Usage(calls=1)}
    one = only(evaluate(spec, [branch(0, "a", **fields), branch(1, "a", **unknown)]))
    assert (one.cost_per_correct_usd, one.shown_cost_per_correct) == (None, "at least $0.005")


def test_a_failed_call_of_which_nothing_is_known_makes_the_cost_a_least():
    spec = job()
    branches = [
        branch(0, "a", columns={"gold": "a"}),
        branch(1, FAILED, columns={"gold": "a"}, usage=Usage(calls=3)),
    ]
    one = only(evaluate(spec, branches))
    assert (one.cost_usd, one.cost_at_least_usd, one.cost_per_correct_usd) == (None, 0.01, None)
    assert (one.shown_cost_per_correct, one.tokens_per_correct) == ("at least $0.01", 40)
    assert one.calls == 2
    # Nothing at all is known.
    one = only(evaluate(spec, branches[1:]))
    assert (one.cost_usd, one.cost_at_least_usd, one.tokens_per_correct) == (None, None, None)
    assert one.shown_cost_per_correct is None


@pytest.mark.parametrize(
    ("label", "answer", "fields", "is_right"),
    [
        ("Positive", "**positive**.", {}, True),
        ("two  words", "Two words", {}, True),
        ("positive", "it is positive", {}, False),
        (1, "1.0", {}, True),
        (1.0, "1", {}, True),
        ("1", "1.0", {}, True),
        ("01", "1", {}, False),
        ("5,0", 5, {"schema": {"type": "integer"}}, True),
        ("5,0", "5", {}, True),
        (5, "5,0", {}, True),
        ("1,234", 1234, {"schema": {"type": "number"}}, True),
        ("5,0", 50, {"schema": {"type": "integer"}}, False),
        ("a,b", "a,b", {}, True),
        ("1,2", "1,2", {"choices": ["1,2", "1.2"]}, True),
        ("1,2", "1.2", {"choices": ["1,2", "1.2"]}, False),
        (True, "true", {}, True),
        (True, "1", {}, False),
        ("ß", "SS", {}, True),
        ("<b>x</b>", "<B>X</B>", {}, True),
        ("x" * 5000, "X" * 5000, {}, True),
        ("x" * 5000, "x" * 5001, {}, False),
        ({"a": 1, "b": [2]}, '{"b":[2.0],"a":1}', {"output_format": "json"}, True),
        ('{"a":1}', '{"a": 1.0}', {"output_format": "json"}, True),
        ("m", "m", {"choices": "m,M"}, True),
        ("M", "m", {"choices": "m,M"}, False),
        (" POSITIVE ", "positive", {"choices": "positive,negative"}, True),
        (2, "2", {"choices": "1,2"}, True),
        (2.0, "2", {"choices": "1,2"}, True),
        ("yes", True, {"schema": {"type": "boolean"}}, True),
        (0, False, {"schema": {"type": "boolean"}}, True),
        ("TRUE", False, {"schema": {"type": "boolean"}}, False),
        (None, "x", {}, None),
        ("null", None, {"schema": {"type": ["string", "null"]}}, True),
        ("7", "7", {"schema": {"type": "string"}}, True),
    ],
)
def test_labels_are_compared_with_answers_as_values(label, answer, fields, is_right):
    one = only(evaluated([(label, answer)], job(**fields)))
    assert one.count == (is_right is not None)
    assert one.correct == (is_right is True)


@pytest.mark.parametrize("fields", [{}, {"output_format": "json"}])
def test_a_wrong_number_is_shown_as_it_was_first_written(fields):
    found = only(evaluated([("2", "3.10"), ("2", "3.1"), ("2", "1e1")], job(**fields)))
    assert [(one.answer, one.count) for one in found.confusion.mistakes] == [
        ("3.10", 2),
        ("1e1", 1),
    ]


def test_fields_of_objects_are_compared_with_their_columns():
    spec = job(schema=OBJECT, labels={"mood": "gold", "stars": "n", "fake": "is_fake"})
    rows = [
        ({"gold": "good", "n": "5", "is_fake": "no"}, {"mood": "good", "stars": 5, "fake": False}),
        ({"gold": "bad", "n": 1, "is_fake": True}, {"mood": "good", "stars": 1, "fake": None}),
        ({"gold": "bad", "n": "", "is_fake": ""}, {"mood": "bad"}),
    ]
    found = evaluate(spec, [branch(at, one, columns=row) for at, (row, one) in enumerate(rows)])
    assert [(one.field, one.correct, one.count) for one in found.variants] == [
        ("mood", 2, 3), ("stars", 2, 2), ("fake", 1, 2),
    ]  # fmt: skip
    assert (found.documents, found.unlabelled) == (3, 0)


@pytest.mark.parametrize(
    ("fields", "labels"),
    [
        ({"labels": "mood", "schema": OBJECT}, {"mood": "mood"}),
        ({"labels": "x", "schema": {"type": "object", "properties": {"one": {}}}}, {"one": "x"}),
        ({"labels": {"stars": "x"}, "schema": OBJECT}, {"stars": "x"}),
        ({"labels": {"any": "x"}, "output_format": "json"}, {"any": "x"}),
        ({"labels": {"any": "x"}, "schema": {"type": "object"}}, {"any": "x"}),
        ({"labels": "x", "schema": {"type": "array"}}, {"": "x"}),
        ({"labels": "x", "schema": {"$ref": "#/$defs/o", "$defs": {"o": OBJECT}}},
         "labels: the answer has several fields (mood, stars, fake): say which one is compared"),
        ({"labels": {"mod": "x"}, "schema": OBJECT},
         "labels: the answer has no field 'mod'; did you mean mood? (it has: mood, stars, fake)"),
        ({"labels": {"mood": "x"}}, "labels: answers have no fields, and so no 'mood'"),
        ({"labels": {"mood": "x"}, "choices": "a,b"}, "labels: answers have no fields"),
        ({"labels": {"mood": "x"}, "schema": {"type": "array"}}, "labels: answers have no fields"),
        ({"labels": {"": "mood", "mood": "x"}, "schema": OBJECT}, "labels: gives the field 'mood' twice"),
        ({"labels": ""}, "labels: must be the name of a column"),
        ({"labels": {"mood": ""}, "schema": OBJECT}, "labels: must be the name of a column"),
        ({"labels": 7}, "labels: must be"),
        ({"labels": {"mood": 7}, "schema": OBJECT}, "labels.mood: must be"),
    ],
)  # fmt: skip
def test_labels_name_a_field_of_the_answer_or_are_refused(fields, labels):
    if isinstance(labels, dict):
        found = evaluate(job(**fields), [])
        assert found.labels == labels
        return
    with pytest.raises(SpecError) as caught:
        job(**fields)
    assert str(caught.value).startswith(labels)


@pytest.mark.parametrize(
    ("fields", "answer", "words"),
    [
        ({"output_format": "json"}, '{"mood": 1, "gold": "a"}',
         "2 wrong answers are objects, compared as a whole with 'gold': --label gold=gold compares a "),
        ({"output_format": "json"}, '{"mood": "a"}', "--label mood=gold"),
        ({"schema": {"type": "object"}}, {"gold": "a"}, "--label gold=gold"),
        ({"output_format": "json"}, '"b"', None),
        ({"output_format": "json", "labels": {"gold": "gold"}}, '{"gold": "b"}', None),
        ({}, '{"gold": "a"}', None),
    ],
)  # fmt: skip
def test_a_label_that_is_compared_with_a_whole_object_is_said(fields, answer, words):
    notes = evaluated([("a", answer), ("a", answer)], job(**fields)).notes
    assert len(notes) == (words is not None)
    assert words is None or words in notes[0]


def test_a_label_that_is_no_choice_is_said():
    pairs = [("good", "good"), ("mixed", "bad"), *((f"x{at}", "bad") for at in range(9))]
    found = evaluated(pairs, job(choices="good,bad"))
    assert only(found).correct == 1
    (note,) = found.notes
    assert note.startswith(
        "10 labels in 'gold' can never be right, being none of the choices: 'mix"
    )
    assert note.endswith("ed', 'x0', 'x1', 'x2', 'x3', ...")


def test_models_and_prompts_are_evaluated_and_compared_on_the_same_documents():
    spec = make_spec(
        models=["m1", "m2"], aspects={"p": "{input}", "q": "{input} now"}, labels="gold"
    )
    draw = random.Random(3)
    right = {"pm1": 0.9, "pm2": 0.5, "qm1": 0.88, "qm2": 0.5}
    branches, table = [], []
    for document in range(200):
        row = [draw.random() < share for share in right.values()]
        table.append(row)
        for at, is_right in enumerate(row):
            branches.append(branch(4 * document + at, "yes" if is_right else "no",
                                   document=document, columns={"gold": "yes"}))  # fmt: skip
    found = evaluate(spec, branches)
    assert [(one.aspect, one.model) for one in found.variants] == [
        ("p", "m1"), ("p", "m2"), ("q", "m1"), ("q", "m2"),
    ]  # fmt: skip
    for at, one in enumerate(found.variants):
        assert one.correct == sum(row[at] for row in table)
    assert len(found.comparisons) == 6
    for one in found.comparisons:
        better = sum(row[one.first] > row[one.second] for row in table)
        worse = sum(row[one.first] < row[one.second] for row in table)
        assert (one.first_better, one.second_better) == (better, worse)
        assert one.p_value == sign_test(better, worse) <= one.p_corrected
    assert found.comparisons == sorted(found.comparisons, key=lambda one: one.p_value)
    assert json.loads(json.dumps(found.to_dict()))["comparisons"][0]["p_value"] < 0.001


def test_a_fallback_counts_for_the_model_that_was_asked_first():
    spec = make_spec(models=["m1", "m2"], prompt="{input}", labels="gold")
    found = evaluate(spec, [
        branch(0, "a", document=0, columns={"gold": "a"}, model="m2"),
        branch(1, "b", document=0, columns={"gold": "a"}, model="m2"),
    ])  # fmt: skip
    assert [(one.model, one.correct) for one in found.variants] == [("m1", 1), ("m2", 0)]


def test_several_answers_to_a_document_do_not_count_as_several_documents():
    spec = job(samples=5)
    branches = [
        branch(5 * document + sample, "a" if document % 2 else "b", document=document,
               sample=sample, columns={"gold": "a"})
        for document in range(40) for sample in range(5)
    ]  # fmt: skip
    one = only(evaluate(spec, branches))
    assert (one.documents, one.count, one.correct) == (40, 200, 100)
    assert (one.accuracy.low, one.accuracy.high) == pytest.approx(wilson_interval(20, 40))


def test_confidences_and_votes_are_calibrated():
    spec = job(choices="a,b")
    sure = branch(0, "a", columns={"gold": "a"}, confidence=0.97)
    voted = branch(1, "a", columns={"gold": "b"}, votes={"a": 3, "b": 1})
    unsaid = branch(2, "a", columns={"gold": "b"})
    found = only(evaluate(spec, [sure, voted, unsaid])).calibration
    assert (found.count, found.accuracy) == (2, 0.5)
    assert found.ece == pytest.approx((0.03 + 0.75) / 2)
    assert only(evaluate(spec, [unsaid])).calibration is None


def test_other_labels_than_those_of_the_job_can_be_given():
    branches = [branch(0, "a", columns={"right": "a", "gold": "b"})]
    spec = job(labels=None)
    assert evaluate(spec, branches) is None
    assert only(evaluate_by("right", spec, branches)).correct == 1
    with pytest.raises(
        SpecError, match="there is no column 'rigth'; did you mean right\\? known: "
    ):
        evaluate_by("rigth", spec, branches)
    with pytest.raises(SpecError, match="labels: answers have no fields"):
        evaluate_by({"mood": "right"}, spec, branches)


def test_a_run_without_branches_has_an_evaluation_without_values():
    found = evaluate(job(), [])
    one = only(found)
    values = msgspec.structs.asdict(one)
    assert {name for name, value in values.items() if value not in (None, [])} == {
        "model", "documents", "count", "answered", "correct", "cached",
    }  # fmt: skip


def test_memory_does_not_grow_with_the_answers(monkeypatch):
    for name, most in {"_MOST_LABELS": 200, "_MOST_TERMS": 400, "_MOST_CELLS": 400}.items():
        monkeypatch.setattr(f"fanout.policy.confusion.{name}", most)

    def branches(count):
        for at in range(count):
            # Free text, with hostile labels.
            label = f"<script>{at}</script>" if at % 2 else "x" * 3000 + str(at)
            yield branch(at, f"{at} " * 40, columns={"gold": label})

    def measured(count):
        found.append(evaluate(job(), branches(count)))

    found = []
    # Without bounds, the longest would take eight times as much.
    once, few, many = (peak_bytes(partial(measured, count)) for count in (100, 500, 4_000))
    assert once < few
    assert many < 1.5 * few
    assert {only(one).accuracy.value for one in found} == {0}
    found = found[-1]
    assert only(found).macro_f1 is None
    assert found.notes == ["'gold' has too many different labels for F1: see the accuracy"]


def test_a_result_shows_its_evaluation_and_saves_it(tmp_path):
    evaluation = evaluated([("a", "a"), ("a", "b")])
    result = Result(
        run_id="r1", status=RunStatus.SUCCEEDED, branches=[], aggregated=None, notes=[],
        reduce_errors=[], usage=USAGE, error=None, elapsed_s=1.0, evaluation=evaluation,
    )  # fmt: skip
    assert "0.500 (0.095 to 0.905), 1 of 2 answers right" in result._repr_html_()
    assert result.to_dict()["evaluation"] == evaluation.to_dict()
    result.save(tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["evaluation"] == evaluation.to_dict()
    hostile = msgspec.structs.replace(only(evaluation), model="<script>")
    two = msgspec.structs.replace(evaluation, variants=[*evaluation.variants, hostile])
    page = dataclasses.replace(result, evaluation=two)._repr_html_()
    assert "&lt;script&gt;: 0.500" in page
    assert "<script>" not in page
    bare = dataclasses.replace(result, evaluation=None)
    assert "evaluation" not in bare.to_dict()
    assert "Accuracy" not in bare._repr_html_()
