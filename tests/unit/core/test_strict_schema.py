"""Schemas in the forms that providers enforce: what they keep, what they lose, what they cannot say."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fanout.core.answer_shape import WrongShapeError, shape_of
from fanout.core.filled_nulls import without_filled_nulls
from fanout.core.strict_schema import native_schema
from fanout.llm.fake_answers import fake_answer
from fanout.llm.gemini_schema import response_schema

DIALECTS = ["openai", "anthropic", "gemini", "llama"]


def objects(schema):
    """Return all schemas of objects in a schema."""
    found = [schema] if isinstance(schema, dict) and "properties" in schema else []
    inner = (
        schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    )
    return found + [one for each in inner for one in objects(each)]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_each_object_requires_all_its_properties_in_their_order_and_allows_no_others(dialect):
    native = native_schema(
        {
            "type": "object",
            "properties": {
                "why": {"type": "string"},
                "verdict": {"enum": ["a", "b"]},
                "part": {"type": "object", "properties": {"n": {"type": "integer"}}},
                "one": {"$ref": "#/definitions/One"},
            },
            "required": ["why"],
            "definitions": {"One": {"type": "object", "properties": {"x": {"type": "number"}}}},
        },
        dialect,
    )
    found = objects(native.schema)
    assert len(found) == 3
    for each in found:
        assert each["required"] == list(each["properties"])
        assert each["additionalProperties"] is False
    assert list(native.schema["properties"]) == ["why", "verdict", "part", "one"]
    assert native.schema["properties"]["why"] == {"type": "string"}
    assert native.schema["properties"]["verdict"] == {
        "anyOf": [{"enum": ["a", "b"], "type": "string"}, {"type": "null"}]
    }
    assert {"type": "null"} in native.schema["properties"]["one"]["anyOf"]
    assert "#/$defs/One" in str(native.schema)
    assert "definitions" not in native.schema


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string"},
        {"enum": ["a"], "type": "string"},
        {"type": "array", "items": {"type": "integer"}},
    ],
)
def test_what_is_no_object_is_wrapped_in_one(schema):
    native = native_schema(schema, "openai")
    assert native.is_wrapped
    assert native.schema["properties"] == {"answer": schema}


def test_what_a_provider_does_not_check_is_named():
    schema = {
        "type": "object",
        "properties": {
            "stars": {"type": "integer", "minimum": 1},
            "names": {"type": "array", "items": {"type": "string", "maxLength": 5}},
        },
    }
    assert native_schema(schema, "openai").unchecked == ("/names/*: maxLength",)
    assert native_schema(schema, "anthropic").unchecked == (
        "/stars: minimum",
        "/names/*: maxLength",
    )
    assert native_schema(schema, "llama").unchecked == ()


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {"type": "object", "properties": {"any": {}}},
        {"type": "object", "additionalProperties": {"type": "integer"}},
        {"type": "array"},
        {"type": "object", "properties": {"more": True}},
    ],
)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_no_provider_can_enforce_is_asked_in_words(schema, dialect):
    assert native_schema(schema, dialect) is None


def test_a_null_that_the_user_allows_stays():
    schema = {
        "type": "object",
        "properties": {"a": {"type": ["string", "null"]}, "b": {"type": "string"}},
    }
    assert without_filled_nulls({"a": None, "b": None}, schema) == {"a": None}


SCALARS = st.sampled_from(
    [{"type": "string"}, {"type": "integer"}, {"type": "boolean"},
     {"enum": ["x", "y"]}, {"type": "number"}, {"type": ["string", "null"]}]
)  # fmt: skip
SCHEMAS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.builds(lambda items: {"type": "array", "items": items}, inner),
        st.dictionaries(st.sampled_from("abcd"), inner, min_size=1).flatmap(
            lambda properties: st.builds(
                lambda required: {
                    "type": "object",
                    "properties": properties,
                    "required": sorted(required),
                },
                st.sets(st.sampled_from(sorted(properties))),
            )
        ),
    ),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None)
@given(SCHEMAS, st.binary(min_size=8, max_size=8), st.sampled_from(DIALECTS))
def test_an_answer_of_the_native_schema_is_one_of_the_users(schema, digest, dialect):
    native = native_schema(schema, dialect)
    assert jsonschema_rs.meta.is_valid(native.schema)
    answer = fake_answer(shape_of(native.schema), digest)
    stored = shape_of(schema).checked(answer)
    assert jsonschema_rs.is_valid(schema, json.loads(stored))


@pytest.mark.parametrize(
    ("schema", "known", "unknown"),
    [
        ({"type": "string", "format": "uri"}, {"anthropic"}, {"openai", "gemini", "llama"}),
        ({"type": "string", "format": "email"}, {"openai", "anthropic"}, {"gemini", "llama"}),
        ({"type": "string", "format": "date-time"}, {*DIALECTS}, set()),
        ({"enum": [1, 2]}, {"openai", "anthropic", "llama"}, {"gemini"}),
        ({"const": True}, {"openai", "anthropic", "llama"}, {"gemini"}),
        ({"enum": ["a", None]}, {*DIALECTS}, set()),
    ],
)
def test_what_makes_a_provider_refuse_a_schema_is_left_out_and_named(schema, known, unknown):
    [keyword] = {"format", "enum", "const"} & schema.keys()
    for dialect in DIALECTS:
        native = native_schema({"type": "object", "properties": {"a": schema}}, dialect)
        assert native.unchecked == ((f"/a: {keyword}",) if dialect in unknown else ())
        assert (f"'{keyword}'" in str(native.schema)) == (dialect in known)


def test_labels_have_their_type_as_providers_ask_for_it():
    made = native_schema({"enum": ["a", None, 1]}, "openai").schema["properties"]["answer"]
    assert made["type"] == ["string", "null", "integer"]
    assert (
        native_schema({"const": 2.5}, "openai").schema["properties"]["answer"]["type"] == "number"
    )
    assert native_schema({"enum": [["a"]]}, "openai") is None


def test_nothing_stands_beside_a_reference():
    schema = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/A", "description": "an A"}},
        "required": ["a"],
        "$defs": {"A": {"type": "string"}},
    }
    made = native_schema(schema, "openai").schema
    assert made["properties"]["a"] == {"$ref": "#/$defs/A"}


TEXT = {"type": "string"}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"type": "string"}}, "patternProperties": {"b": {}}},
        {"type": "array", "items": {"$ref": "#"}},
        {"type": "object", "properties": {"a": {"$ref": "#/properties/a"}}},
        {"allOf": [{"type": "object"}, {"required": ["a"]}]},
        {"description": "anything"},
        {"type": "object", "properties": {"a": TEXT}, "required": ["a", "b"]},
        {"type": "object", "properties": {"a": TEXT}, "minProperties": 2},
        {
            "type": "object",
            "properties": {"a": TEXT},
            "if": {"required": ["a"]},
            "then": {"required": ["b"]},
        },
        {"type": "object", "properties": {"a": TEXT}, "dependentRequired": {"a": ["b"]}},
        {
            "type": "object",
            "properties": {"a": TEXT},
            "dependentSchemas": {"a": {"allOf": [{"required": ["b"]}]}},
        },
        {
            "type": "object",
            "properties": {"a": {"type": "object", "properties": {"x": TEXT}}},
            "else": {"properties": {"a": {"required": ["y"]}}},
        },
        {
            "type": "array",
            "items": {"type": "object", "properties": {"a": TEXT}},
            "contains": {"required": ["b"]},
        },
        {"type": "array", "items": TEXT, "prefixItems": [{"type": "integer"}]},
        {"type": ["array", "null"]},
        {"type": ["object", "null"]},
        {"allOf": [TEXT, {"type": "integer"}]},
        {"anyOf": [TEXT, {"const": 1}], "oneOf": [{"type": "boolean"}, {"type": "null"}]},
        {
            "allOf": [
                {"properties": {"a": TEXT}, "additionalProperties": False},
                {"properties": {"b": TEXT}, "required": ["b"]},
            ]
        },
        {"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/A", "minLength": 1}}},
        {"$ref": "#/$defs/A", "$defs": {"A": {"anyOf": [{"$ref": "#/$defs/A"}]}}},
        {
            "$ref": "#/$defs/A",
            "required": ["a"],
            "$defs": {"A": {"properties": {"a": {"$ref": "#/$defs/A", "required": ["a"]}}}},
        },
    ],
)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_would_be_another_schema_is_asked_in_words(schema, dialect):
    assert native_schema(schema, dialect) is None


def closed(*names):
    return {"type": "object", "properties": dict.fromkeys(names, TEXT), "required": list(names),
            "additionalProperties": False}  # fmt: skip


A_AND_B = {"A": {"properties": {"a": TEXT}, "required": ["a"]},
           "B": {"allOf": [{"$ref": "#/$defs/A"},
                           {"properties": {"b": TEXT}, "required": ["b"]}]}}  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "made"),
    [
        ({"allOf": [closed("a"), {"required": ["a"]}]}, closed("a")),
        ({"$ref": "#/$defs/B", "$defs": A_AND_B, "required": ["a"]}, closed("a", "b")),
        ({**closed("a"), "additionalProperties": True, "anyOf": [closed("a", "b"), closed("a", "c")]},
         {"anyOf": [closed("a", "b"), closed("a", "c")]}),
        ({**closed("a", "b"), "required": ["a"], "oneOf": [{"required": ["b"]}, {"type": "null"}]},
         closed("a", "b")),
        ({**closed("a"), "type": ["object", "null"]}, {"anyOf": [closed("a"), {"type": "null"}]}),
        ({"type": ["string", "null"], "properties": {"a": TEXT}, "required": ["a"]},
         {"type": ["string", "null"]}),
        ({"type": ["object", "string"], "enum": ["x", "y"], "properties": {"a": TEXT}},
         {"type": "string", "enum": ["x", "y"]}),
        ({"anyOf": [TEXT, {"type": "integer"}], "oneOf": [{"type": "number"}, {"type": "null"}]},
         {"type": "integer"}),
        ({"allOf": [{"enum": ["x", "y"]}, {"enum": ["y", "z"]}]}, {"type": "string", "enum": ["y"]}),
        ({**closed("a"), "allOf": [{"if": {"required": ["a"]}, "then": {"required": ["a"]}},
                                   {"if": {}, "then": {}}]}, closed("a")),
    ],
)  # fmt: skip
def test_what_stands_beside_another_keyword_is_merged_with_it(schema, made):
    native = native_schema(schema, "openai")
    root = native.schema["properties"]["answer"] if native.is_wrapped else native.schema
    assert root == made


def test_a_schema_for_gemini_is_openapi_without_references_and_bounded():
    schema = {
        "type": "object",
        "properties": {
            "kind": {"enum": ["x", "y"]},
            "size": {"type": ["integer", "string", "null"]},
            "tag": {"$ref": "#/$defs/Tag"},
            "more": {"type": "array", "items": {"$ref": "#/$defs/Tag"}, "minItems": 1},
        },
        "required": ["kind", "size"],
        "$defs": {"Tag": {"type": "object", "properties": {"name": {"type": "string"}},
                          "required": ["name"]}},
    }  # fmt: skip
    tag = {"required": ["name"], "properties": {"name": {"type": "STRING"}},
           "propertyOrdering": ["name"], "type": "OBJECT"}  # fmt: skip
    assert response_schema(native_schema(schema, "gemini")) == {
        "required": ["kind", "size", "tag", "more"],
        "properties": {
            "kind": {"enum": ["x", "y"], "type": "STRING"},
            "size": {"nullable": True, "anyOf": [{"type": "INTEGER"}, {"type": "STRING"}]},
            "tag": {**tag, "nullable": True},
            "more": {"minItems": 1, "items": tag, "type": "ARRAY", "nullable": True},
        },
        "propertyOrdering": ["kind", "size", "tag", "more"],
        "type": "OBJECT",
    }
    # Each level has the one below it twice.
    levels: dict[str, Any] = {"L0": {"type": "string"}}
    for n in range(1, 40):
        each = {"$ref": f"#/$defs/L{n - 1}"}
        levels[f"L{n}"] = {"type": "object", "properties": {"a": each, "b": each}}
    large = {"$ref": "#/$defs/L39", "$defs": levels}
    assert response_schema(native_schema(large, "gemini")) is None


NAMES = st.sampled_from("abc")
ANY_KINDS = st.lists(
    st.sampled_from(["string", "integer", "null", "object"]), min_size=1, max_size=2, unique=True
)


def any_object(inner):
    """Return schemas of objects with all that may stand beside their properties."""
    some = st.fixed_dictionaries(
        {},
        optional={
            "properties": st.dictionaries(NAMES, inner, min_size=1),
            "required": st.lists(NAMES, max_size=2, unique=True),
        },
    )
    return st.fixed_dictionaries(
        {
            "type": st.just("object") | ANY_KINDS,
            "properties": st.dictionaries(NAMES, inner, min_size=1),
        },
        optional={
            "required": st.lists(NAMES, max_size=2, unique=True),
            "additionalProperties": st.booleans(),
            "anyOf": st.lists(some | inner, min_size=1, max_size=2),
            "oneOf": st.lists(some | inner, min_size=1, max_size=2),
            "allOf": st.lists(some | inner, min_size=1, max_size=2),
            "if": some,
            "then": some,
            "dependentRequired": st.dictionaries(NAMES, st.lists(NAMES, max_size=1)),
            "minProperties": st.integers(0, 3),
        },
    )


ANY_SCHEMAS = st.recursive(
    st.sampled_from(
        [{"type": "string"}, {"const": "x"}, {"enum": ["x", "y", None]}, {"type": "integer"},
         {"type": ["integer", "null"]}, {"$ref": "#/$defs/D"}, {"$ref": "#/$defs/D", "required": ["b"]},
         {"type": "null"}]
    ),
    lambda inner: st.one_of(
        any_object(inner),
        st.builds(lambda items: {"type": "array", "items": items}, inner),
        st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner),
        st.builds(lambda a, b: {"oneOf": [a, {"anyOf": [b, {"type": "null"}]}]}, inner, inner),
    ),
    max_leaves=5,
)  # fmt: skip


def instance(schema, root, rng, depth=0):
    """Return a value of a strict schema."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    if "anyOf" in schema:
        # The last one is null, where null is allowed.
        one = schema["anyOf"][-1] if depth > 4 else rng.choice(schema["anyOf"])
        return instance(one, root, rng, depth)
    if not {"const", "enum"}.isdisjoint(schema):
        return schema["const"] if "const" in schema else rng.choice(schema["enum"])
    kinds = schema["type"]
    kind = kinds if isinstance(kinds, str) else kinds[-1] if depth > 4 else rng.choice(kinds)
    if kind == "object":
        return {
            name: instance(one, root, rng, depth + 1) for name, one in schema["properties"].items()
        }
    if kind == "array":
        return [
            instance(schema["items"], root, rng, depth + 1)
            for _ in range(rng.randrange(1 if depth > 4 else 3))
        ]
    return {"string": rng.choice("xy"), "integer": rng.randrange(2), "null": None}[kind]


SCALAR_VALUES = ["x", "y", 0, 1, None]
SMALL_VALUES = [
    *SCALAR_VALUES,
    [],
    *(
        dict(zip(names, values, strict=True))
        for names in ([], ["a"], ["b"], ["c"], ["a", "b"], ["b", "c"])
        for values in itertools.product(["x", 0, None], repeat=len(names))
    ),
]


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(ANY_SCHEMAS, ANY_SCHEMAS, st.integers(0, 9))
def test_a_provider_can_give_what_the_user_asks_for_and_nothing_else(part, definition, seed):
    rng = random.Random(seed)
    schema = {**part, "$defs": {"D": definition}}
    native = native_schema(schema, "openai")
    if native is None:
        return
    assert jsonschema_rs.meta.is_valid(native.schema)
    validator, shape = jsonschema_rs.validator_for(schema), shape_of(schema)
    try:
        answers = [instance(native.schema, native.schema, rng) for _ in range(40)]
    except RecursionError:
        return
    taken = 0
    for answer in answers:
        try:
            stored = json.loads(shape.checked(json.dumps(answer)))
        except WrongShapeError:
            assert native.unchecked, answer
        else:
            assert validator.is_valid(stored)
            taken += 1
    # Of alternatives that exclude each other, few samples may be valid.
    is_exclusive = any("oneOf" in one for one in native.unchecked)
    assert taken or is_exclusive or not any(map(validator.is_valid, SMALL_VALUES)), answers
