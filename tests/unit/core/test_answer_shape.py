"""The shape of answers: what is taken, what is stored, and what is wrong with the rest."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanout.core.answer_shape import WrongShapeError, checked_schema, shape_of
from fanout.core.errors import SpecError

REVIEW = {
    "type": "object",
    "properties": {
        "why": {"type": "string", "minLength": 3},
        "stars": {"type": "integer", "minimum": 1, "maximum": 5},
        "note": {"type": "string"},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/Tag"}},
    },
    "required": ["why", "stars"],
    "$defs": {
        "Tag": {
            "type": "object",
            "properties": {"name": {"type": ["string", "null"]}, "kind": {"enum": ["x", "y"]}},
            "required": ["name"],
        }
    },
}


@pytest.mark.parametrize(
    ("answer", "stored"),
    [
        ('{"why":"fine","stars":3}', '{"why":"fine","stars":3}'),
        ('{"stars": 3, "why": "fine"}', '{"stars":3,"why":"fine"}'),
        ('```json\n{"why":"fine","stars":3}\n```', '{"why":"fine","stars":3}'),
        ('Here it is: {"why":"fine","stars":3}. Good?', '{"why":"fine","stars":3}'),
        ('<think>{"no": 1}</think>{"why":"fine","stars":3}', '{"why":"fine","stars":3}'),
        ('{"answer":{"why":"fine","stars":3}}', '{"why":"fine","stars":3}'),
        ('{"why":"fine","stars":3,"note":null,"tags":null}', '{"why":"fine","stars":3}'),
        (
            '{"why":"fine","stars":3,"tags":[{"name":null,"kind":null}]}',
            '{"why":"fine","stars":3,"tags":[{"name":null}]}',
        ),
    ],
)
def test_an_answer_is_stored_as_bare_json(answer, stored):
    assert shape_of(REVIEW).checked(answer) == stored


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("three stars", "the answer is not JSON"),
        ('{"why":"fine"}', '"stars" is a required property'),
        ('{"why":"fine","stars":9}', "/stars: 9 is greater than the maximum of 5"),
        ('{"why":"","stars":"3"}', "/stars: .*integer"),
        (
            '{"why":"fine","stars":3,"tags":[{"name":"a","kind":"z"}]}',
            '/tags/0/kind: "z" is not one of',
        ),
        ('{"why":null,"stars":3}', "/why: null is not of type"),
        ('{"why":"fine","stars":3} {"why":"fine","stars":4}', "2 different JSON values"),
        ("[" * 5_000, "not JSON"),
    ],
)
def test_a_wrong_answer_is_told_where_what_and_what_is_allowed(answer, words):
    with pytest.raises(WrongShapeError, match=words):
        shape_of(REVIEW).checked(answer)


def test_a_message_about_a_large_value_is_short():
    answer = json.dumps({"why": "fine", "stars": "x" * 100_000})
    with pytest.raises(WrongShapeError) as caught:
        shape_of(REVIEW).checked(answer)
    assert len(str(caught.value)) < 500


LABELS = ("positive", "negative", "not clear", ".NET", "C++", "C")


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("positive", "positive"),
        (" Positive.\n", "positive"),
        ("**Not  clear**", "not clear"),
        ('"negative"', "negative"),
        ('{"answer": "negative"}', "negative"),
        ('{"sentiment": "Negative"}', "negative"),
        ('```json\n{"answer": ".NET"}\n```', ".NET"),
        ("<think>C++ or C?</think>c++", "C++"),
        ("C", "C"),
        (".net", ".NET"),
    ],
)
def test_a_choice_is_stored_as_the_bare_label(answer, label):
    assert shape_of(None, LABELS).checked(answer) == label


@pytest.mark.parametrize(
    "answer", ["neutral", "", "positive or negative", '{"a": 1, "b": 2}', "C#"]
)
def test_what_is_none_of_the_choices_names_them(answer):
    with pytest.raises(WrongShapeError, match=r"none of the choices positive, negative"):
        shape_of(None, LABELS).checked(answer)


def test_labels_that_differ_only_in_case_must_be_exact():
    shape = shape_of(None, ("US", "us"))
    assert shape.checked("us") == "us"
    with pytest.raises(WrongShapeError):
        shape.checked("Us")


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "strin"}, "schema: is not a JSON Schema: /type: .*strin"),
        ({"$ref": "http://127.0.0.1:9/x"}, "another document"),
        ({"$ref": "file:///etc/passwd"}, "another document"),
        ({"type": "object", "properties": []}, "/properties"),
        ({"type": "string", "pattern": "("}, "schema: is not a JSON Schema"),
    ],
)
def test_what_is_no_schema_is_refused_without_a_look_elsewhere(schema, words):
    with pytest.raises(SpecError, match=words):
        checked_schema(schema, field="schema")


def test_a_pattern_costs_linear_time():
    shape = shape_of({"type": "string", "pattern": "^(a+)+$"})
    with pytest.raises(WrongShapeError):
        shape.checked(json.dumps("a" * 5_000 + "b"))


@settings(max_examples=200)
@given(st.text(max_size=200))
def test_no_answer_raises_anything_else(answer):
    for shape in (shape_of(REVIEW), shape_of(None, LABELS)):
        try:
            stored = shape.checked(answer)
        except WrongShapeError:
            continue
        assert shape.checked(stored) == stored
