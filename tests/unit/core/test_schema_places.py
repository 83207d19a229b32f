"""A job is refused whose schema no answer can meet, or has no place for the citations that it asks for."""

from __future__ import annotations

import re

import pytest

from fanout.core.answer_shape import checked_schema
from fanout.core.errors import SpecError
from fanout.core.field_effects import require_used
from fanout.core.schema_places import has_text
from fanout.core.spec import make_spec

JOB = {"model": "fake", "prompt": "{input}", "aggregate_prompt": "SUM {input}", "sources": True}
FLAG = {"type": "boolean"}
TEXT = {"type": "string"}


def object_of(**fields):
    return {"type": "object", "properties": fields, "required": list(fields)}


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum 5 is greater than maximum 3"),
        ({"type": "string", "minLength": 5, "maxLength": 3}, "minLength 5"),
        ({"type": "array", "minItems": 2, "maxItems": 1}, "minItems 2"),
        ({"type": "integer", "enum": ["a", "b"]}, "no value of enum meets"),
        (object_of(n={"type": "integer", "minimum": 5, "maximum": 3}), "/n: minimum 5"),
        (object_of(a=object_of(b={"type": "integer", "enum": ["x"]})), "/a/b: no value of enum"),
        ({"type": ["integer", "number"], "minimum": 5, "maximum": 3}, "minimum 5"),
        (object_of(a={"type": "string", "const": 5}), "/a: const does not meet"),
        ({"enum": []}, "no value of enum"),
        (object_of(a=False), "/a: is required and not allowed"),
        (
            {
                "type": "object",
                "properties": {"a": TEXT},
                "required": ["b"],
                "additionalProperties": False,
            },
            "/b: is required and not allowed",
        ),
    ],
)
def test_a_schema_that_no_answer_meets_is_refused(schema, why):
    with pytest.raises(SpecError, match=f"can be met by no answer: {why}"):
        checked_schema(schema, field="schema")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 3, "maximum": 3},
        {"type": "integer", "enum": [1, "a"]},
        {"type": ["string", "null"], "enum": ["a", None]},
        {"type": "object", "properties": {"n": {"minimum": 5, "maximum": 3}}},
        {"anyOf": [{"minimum": 5, "maximum": 3}, TEXT]},
        # Values of other types meet bounds that contradict each other.
        {"type": ["string", "null"], "minLength": 3, "maxLength": 1},
        object_of(a={"minimum": 5, "maximum": 3}),
        {"type": "string", "const": "a"},
        {"type": "object", "required": ["b"], "additionalProperties": False,
         "patternProperties": {"b": TEXT}},
    ],
)  # fmt: skip
def test_a_schema_that_some_answer_meets_is_taken(schema):
    assert checked_schema(schema, field="schema") == schema


@pytest.mark.parametrize(
    ("schema", "reference"),
    [
        ({"$ref": "#"}, "#"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
         "#/$defs/"),
        (object_of(a={"$ref": "#/properties/a"}), "#/properties/a"),
        ({"anyOf": [{"$ref": "#"}, TEXT]}, "#"),
        ({"allOf": [{"not": {"$ref": "#"}}, TEXT]}, "#"),
    ],
)  # fmt: skip
def test_a_schema_is_refused_whose_reference_leads_back_to_itself_at_once(schema, reference):
    with pytest.raises(
        SpecError, match=f"schema: says nothing: the reference '{re.escape(reference)}"
    ):
        checked_schema(schema, field="schema")


@pytest.mark.parametrize(
    "schema",
    [
        object_of(text=TEXT, answers={"type": "array", "items": {"$ref": "#"}}),
        {"$ref": "#/$defs/tree", "$defs": {"tree": object_of(left={"anyOf": [{"$ref": "#/$defs/tree"},
                                                                             {"type": "null"}]})}},
        {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}], "$defs": {"a": TEXT}},
        {"enum": [{"$ref": "#/enum/0"}, "a"]},
    ],
)  # fmt: skip
def test_a_schema_of_answers_within_answers_is_taken(schema):
    assert checked_schema(schema, field="schema") == schema


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({}, True),
        (TEXT, True),
        ({"type": "object"}, True),
        ({"$ref": "#/$defs/a", "$defs": {"a": FLAG}}, True),
        ({"type": ["boolean", "string"]}, True),
        (object_of(a=FLAG, b=TEXT), True),
        ({**object_of(a=FLAG), "additionalProperties": True}, True),
        ({"type": "array", "items": TEXT}, True),
        ({"anyOf": [FLAG, TEXT]}, True),
        ({**object_of(a=TEXT), "oneOf": [object_of(b=FLAG)]}, True),
        ({**object_of(a=FLAG), "oneOf": [object_of(b=FLAG)]}, False),
        ({"allOf": [FLAG], "type": "boolean"}, True),
        (FLAG, False),
        ({"type": ["integer", "null"]}, False),
        ({"type": "string", "enum": ["a", "b"]}, False),
        ({"const": "a"}, False),
        (object_of(a=FLAG, b={"enum": ["x"]}), False),
        ({"type": "array", "items": FLAG}, False),
        ({"anyOf": [FLAG, {"type": "null"}]}, False),
    ],
)
def test_where_citations_have_a_place(schema, expected):
    assert has_text(schema) is expected
    spec = make_spec(**JOB, aggregate_schema=schema)
    if expected:
        require_used(spec)
        return
    with pytest.raises(SpecError, match="no place for a text that cites") as caught:
        require_used(spec)
    assert caught.value.field == "sources"


@pytest.mark.parametrize("schema", [False, True, 5, [TEXT]])
def test_a_schema_that_is_no_object_is_named_without_advice_on_python(schema):
    with pytest.raises(SpecError, match="must be a JSON Schema, the path of a file") as caught:
        make_spec(model="fake", prompt="{input}", schema=schema)
    assert "pydantic" not in str(caught.value)


def test_labels_that_differ_by_blanks_say_what_does_not_count():
    with pytest.raises(SpecError, match=r"has 'a' twice .blanks at the ends do not count"):
        make_spec(model="fake", prompt="{input}", choices=["a", "A", " a"])
