"""The shape of answers: what is taken, what is stored, and what is wrong with the rest."""

from __future__ import annotations

import json
from typing import Any, TypedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanout.core.answer_shape import WrongShapeError, checked_schema, shape_of
from fanout.core.errors import SpecError
from fanout.core.spec import make_spec
from fanout.core.strict_schema import native_schema
from fanout.llm.fake_answers import fake_answer

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
        ("<think>3</think>three stars", "the answer 'three stars' is not JSON"),
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


@pytest.mark.parametrize(
    ("schema", "answer", "words"),
    [
        ({"enum": ["a", "b"]}, "c", 'the answer: "c" is not one of "a" or "b"'),
        ({"enum": ["a", "b"]}, '"a', """the answer '"a' is not JSON"""),
        ({"type": "string", "format": "date"}, "soon", '"soon" is not a "date"'),
        ({"type": "string"}, "null", "null is not of type"),
        ({"type": "integer"}, "many", "the answer 'many' is not JSON"),
        # It may be meant as any of these.
        ({}, "many", "the answer 'many' is not JSON"),
        ({"anyOf": [{"type": "string"}, {"type": "object"}]}, "many", "'many' is not JSON"),
    ],
)
def test_a_bare_text_is_told_what_is_wrong_with_it(schema, answer, words):
    with pytest.raises(WrongShapeError, match=words):
        shape_of(schema).checked(answer)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": ["string", "null"]},
        {"const": "b"},
        {"enum": ["a", "b", 3]},
        {"$defs": {"Mood": {"enum": ["a", "b"]}}, "$ref": "#/$defs/Mood"},
        {"anyOf": [{"type": "integer"}, {"allOf": [{"type": "string"}]}]},
    ],
)
def test_a_schema_of_texts_takes_a_bare_one(schema):
    assert shape_of(schema).checked(" b\n") == '"b"'


def test_a_message_about_a_large_value_is_short():
    answer = json.dumps({"why": "fine", "stars": "x" * 100_000})
    with pytest.raises(WrongShapeError) as caught:
        shape_of(REVIEW).checked(answer)
    assert len(str(caught.value)) < 500


class Undefined(TypedDict):
    x: Unknown  # type: ignore[name-defined]  # noqa: F821


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
        ("```\nnegative\n```", "negative"),
        ('["negative"]', "negative"),
        ("\u201cNot clear\u201d", "not clear"),
        ("__not clear__", "not clear"),
        ("- positive", "positive"),
        ("\u2022 **Not clear**.", "not clear"),
    ],
)
def test_a_choice_is_stored_as_the_bare_label(answer, label):
    assert shape_of(None, LABELS).checked(answer) == label


@pytest.mark.parametrize(
    ("labels", "answers"),
    [
        ((".NET", "NET"), {".NET": ["**.net**", ".NET."], "NET": ["net.", '"NET"']}),
        (("A*", "A"), {"A*": ["A*", "a*.", "**A***", "`A*`"], "A": ["**A**", "*a*", "A."]}),
        (("C", "C#", "C++"), {"C#": ["c#."], "C++": ["**C++**"], "C": ["(c)"]}),
        (("Yes!", "Yes"), {"Yes!": ["**Yes!**", "yes!"], "Yes": ["yes", "Yes."]}),
        (("a", "A"), {"a": ["'a'"], "A": ["**A**"]}),
        (("(a)", "(b)"), {"(a)": ["a", "(A)."], "(b)": ["**b**"]}),
        (("-5", "\u22125", "7,9", "79"), {"\u22125": ["\u22125."], "7,9": ['"7,9"'], "79": ["79"]}),
    ],
)
def test_labels_that_differ_by_a_mark_are_told_apart(labels, answers):
    for label, some in answers.items():
        assert [shape_of(None, labels).checked(answer) for answer in some] == [label] * len(some)


@pytest.mark.parametrize("answer", ["A", "NET", "c", "9", "- 7,9"])
def test_a_label_without_its_mark_is_none_of_the_choices(answer):
    with pytest.raises(WrongShapeError, match="none of the choices"):
        shape_of(None, ("A*", ".NET", "C++", "7,9")).checked(answer)


@pytest.mark.parametrize(
    "answer", ["neutral", "", "positive or negative", '{"a": 1, "b": 2}', "C#"]
)
def test_what_is_none_of_the_choices_names_them(answer):
    with pytest.raises(WrongShapeError, match=r"none of the choices positive, negative"):
        shape_of(None, LABELS).checked(answer)


@pytest.mark.parametrize(
    ("labels", "answers"),
    [
        (("good", "good enough"), {"good": "good", "Good enough.": "good enough"}),
        (("1", "2", "10"), {"1": "1", "10": "10", '{"answer": 10}': "10", "2.": "2"}),
        (("-5", "5"), {"-5": "-5", "\u22125": "-5", "5": "5"}),
        (("7,9", "79"), {"7,9": "7,9", '"7,9"': "7,9", "79": "79"}),
        (("true", "false"), {"true": "true", '{"answer": false}': "false", "True": "true"}),
        (("A*", "A", "B"), {"A*": "A*", "A": "A", "**B**": "B"}),
        (("A*", "B"), {"A*": "A*", "**A***": "A*", "A": None}),
        (('5" disk', "it's"), {'5" disk': '5" disk', "it's": "it's", '"it\'s"': "it's"}),
        (("caf\u00e9", "the"), {"cafe\u0301": "caf\u00e9", "CAF\u00c9": "caf\u00e9"}),
        (("stra\u00dfe", "weg"), {"STRASSE": "stra\u00dfe"}),
        (("A.", "A"), {"A.": "A.", "A": "A", "a": "A", "**a.**": "A."}),
        (("none of these", "null"), {"null": "null", "none of these": "none of these"}),
    ],
)
def test_labels_are_told_apart_and_known_in_other_spellings(labels, answers):
    shape = shape_of(None, labels)
    for answer, label in answers.items():
        if label is None:
            with pytest.raises(WrongShapeError):
                shape.checked(answer)
        else:
            assert shape.checked(answer) == label, answer


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
        ({"$schema": "http://127.0.0.1:9/x"}, r"\$schema must name a draft.*127.0.0.1"),
        ({"$schema": 7}, r"\$schema must name a draft"),
        ({"properties": {"a": {"$ref": "#/$defs/No"}}}, "/.defs/No' does not exist"),
    ],
)
def test_what_is_no_schema_is_refused_without_a_look_elsewhere(schema, words):
    with pytest.raises(SpecError, match=words):
        checked_schema(schema, field="schema")
    with pytest.raises(SpecError, match=words.removeprefix("schema: ")) as caught:
        make_spec(model="fake", prompt="{input}", schema=schema)
    assert str(caught.value).count("(got ") == 1


@pytest.mark.parametrize("kind", [print, "undefined", Undefined])
def test_a_wrong_type_is_told_with_what_it_is_once(kind):
    with pytest.raises(SpecError, match="must be a JSON Schema, the path") as caught:
        make_spec(model="fake", prompt="{input}", schema=kind)
    assert str(caught.value).count("(got ") == 1


def test_a_pattern_costs_linear_time():
    shape = shape_of({"type": "string", "pattern": "^(a+)+$"})
    with pytest.raises(WrongShapeError):
        shape.checked(json.dumps("a" * 5_000 + "b"))


def nested(depth):
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def test_a_schema_of_any_depth_is_read_or_refused():
    assert shape_of(checked_schema(nested(95), field="schema")).checked('{"a":{}}') == '{"a":{}}'
    for dialect in ("openai", "anthropic", "gemini", "llama"):
        native_schema(nested(95), dialect)
    for depth in (105, 3_000):
        with pytest.raises(SpecError, match="nested more than 200 levels deep"):
            checked_schema(nested(depth), field="schema")


ITSELF = {
    "root": {"type": "object", "properties": {"n": {"type": "integer"}, "next": {"$ref": "#"}},
             "required": ["n"]},
    "definition": {"$ref": "#/$defs/Node", "$defs": {"Node": {
        "type": "object", "properties": {"n": {"type": "integer"}, "next": {"$ref": "#/$defs/Node"}},
        "required": ["n"]}}},
    "property": {"type": "object", "properties": {
        "n": {"type": "integer"}, "next": {"$ref": "#/$defs/a~1b"}}, "required": ["n"],
        "$defs": {"a/b": {"$ref": "#"}}},
}  # fmt: skip


@pytest.mark.parametrize("name", ITSELF)
def test_a_schema_that_refers_to_itself(name):
    schema = checked_schema(ITSELF[name], field="schema")
    shape = shape_of(schema)
    assert shape.checked('{"n":1,"next":{"n":2,"next":null}}') == '{"n":1,"next":{"n":2}}'
    with pytest.raises(WrongShapeError, match="/next"):
        shape.checked('{"n":1,"next":{"n":"x"}}')
    assert shape.checked(fake_answer(shape, b"abc"))
    assert native_schema(schema, "anthropic") is None
    assert native_schema(schema, "gemini") is None


@pytest.mark.parametrize("schema", [{"$ref": "#"}, {"$ref": "#/$defs/A", "$defs": {
    "A": {"$ref": "#/$defs/B"}, "B": {"$ref": "#/$defs/A"}}}])  # fmt: skip
def test_a_schema_that_only_refers_to_itself_allows_anything(schema):
    assert shape_of(schema).checked('{"a":null}') == '{"a":null}'


ANY = shape_of({})


@pytest.mark.parametrize(
    ("answer", "stored"),
    [
        ('{"a\\u0000b":"\\u0000"}', '{"a\\u0000b":"\\u0000"}'),
        ('{"a":1,"a":2}', '{"a":2}'),
        (str(2**70), str(2**70)),
        (str(-(2**63) - 1), str(-(2**63) - 1)),
        ("1e308", "1e308"),
        ("[" * 100 + "]" * 100, "[" * 100 + "]" * 100),
        ("NaN", None),
        ("-Infinity", None),
        ("1e400", None),
        ("1" * 5_000, None),
        ("[" * 100_000 + "]" * 100_000, None),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, None),
        ('"\\ud800"', None),
    ],
    ids=lambda text: str(text)[:12],
)
def test_a_hostile_answer_is_stored_as_valid_json_or_refused(answer, stored):
    if stored is not None:
        assert ANY.checked(answer) == stored
        return
    with pytest.raises(WrongShapeError, match="not JSON") as caught:
        ANY.checked(answer)
    assert len(str(caught.value)) < 300


TEXT = {"type": "string"}
UNIONS = {
    "A": {"properties": {"kind": {"const": "a"}, "note": TEXT, "value": TEXT},
          "required": ["kind", "value"]},
    "B": {"properties": {"kind": {"const": "b"}, "value": TEXT, "more": {"$ref": "#/$defs/Any"}},
          "required": ["kind"]},
    "Any": {"anyOf": [{"oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}]}, {"type": "null"}]},
}  # fmt: skip
B_IN_B = '{"kind":"b","value":null,"more":{"kind":"b","value":null,"more":%s}}'


@pytest.mark.parametrize(
    ("schema", "answer", "stored"),
    [
        ({"$ref": "#/$defs/Any"}, '{"kind":"a","value":"v","note":null}', '{"kind":"a","value":"v"}'),
        ({"$ref": "#/$defs/Any"}, '{"kind":"b","value":null}', '{"kind":"b"}'),
        ({"$ref": "#/$defs/Any"}, '{"kind":"a","value":null}', None),
        ({"items": {"$ref": "#/$defs/B"}}, f"[{B_IN_B % 'null'}]",
         '[{"kind":"b","more":{"kind":"b","more":null}}]'),
        ({"$ref": "#/$defs/Any", "required": ["value"]}, '{"kind":"b","value":null}', None),
        ({"allOf": [{"$ref": "#/$defs/B"}, {"properties": {"x": TEXT}}]}, '{"kind":"b","x":null}',
         '{"kind":"b"}'),
        ({"properties": {"answer": TEXT, "x": TEXT}}, '{"answer":null}', "{}"),
        ({"properties": {"x": {}}}, '{"x":null}', '{"x":null}'),
        ({"properties": {"x": {"not": {"type": "null"}}}}, '{"x":null}', "{}"),
    ],
)  # fmt: skip
def test_nulls_are_left_out_by_the_alternative_that_an_answer_is(schema, answer, stored):
    shape = shape_of({**schema, "$defs": UNIONS})
    if stored is not None:
        assert shape.checked(answer) == stored
        return
    with pytest.raises(WrongShapeError):
        shape.checked(answer)


def tree(union, **more):
    """Return the schema of a tree whose two kinds of nodes are alike."""
    nodes = {"type": "array", "items": {"$ref": "#/$defs/Node"}}
    kinds = [{"properties": {"nodes": nodes, name: TEXT}, "required": ["nodes"], "type": "object"}
             for name in "ab"]  # fmt: skip
    return {"$ref": "#/$defs/Node", "$defs": {"Node": {union: [*kinds, TEXT][: more.pop("n", 3)]}},
            **more}  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (tree("anyOf"), "not valid under any of the schemas"),
        (tree("oneOf"), "not valid under exactly one of the schemas"),
        (tree("anyOf", **{"$schema": "http://json-schema.org/draft-04/schema#"}), "under any of"),
        (tree("allOf", n=2), "not valid under all of the schemas"),
    ],
)
@pytest.mark.parametrize("leaf", ["5", '{"nodes":5,"a":null,"c":null}'])
def test_what_is_wrong_deep_in_a_tree_is_told_at_once(schema, words, leaf):
    # Each level is read twice: 2**60 steps would take for ever.
    answer = '{"nodes":[' * 30 + leaf + "]}" * 30
    with pytest.raises(WrongShapeError, match=words):
        shape_of(schema).checked(answer)


def test_an_error_beside_alternatives_is_told_in_its_place():
    optional = {"anyOf": [TEXT, {"type": "null"}]}
    shape = shape_of({"properties": {"a": optional, "b": {"properties": {"c": optional}}}})
    with pytest.raises(WrongShapeError, match="/b/c: 5 is not valid under any of the schemas"):
        shape.checked('{"a":null,"b":{"c":5}}')


def references(count, part):
    """Return a schema of definitions, each of which refers to the next one."""
    definitions = {f"D{n}": part({"$ref": f"#/$defs/D{n + 1}"}) for n in range(count)}
    return {"$ref": "#/$defs/D0", "$defs": {**definitions, f"D{count}": {"type": "string"}}}


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (references(4_000, lambda one: {"anyOf": [one]}), "more than 3,000 levels"),
        (references(2_000, lambda one: {"properties": {"a": one}}), "more than 3,000 levels"),
        (references(2_000, lambda one: one), "more than 3,000 levels"),
        (references(20, lambda one: {"anyOf": [one, one]}), "more than 10,000 ways"),
        (references(20, lambda one: {"allOf": [one], "not": one}), "more than 10,000 ways"),
        ({"enum": ["x" * 1_000_001]}, "larger than 1,000,000 bytes"),
        ({"const": object()}, "is not JSON"),
    ],
)
def test_a_schema_that_costs_too_much_is_refused_where_it_is_given_and_loaded(schema, words):
    with pytest.raises(SpecError, match=words):
        checked_schema(schema, field="schema")
    if "JSON" not in words:
        with pytest.raises(SpecError, match=words):
            shape_of(schema)


def test_many_definitions_in_a_circle_are_no_chain():
    names = {f"p{n}": {"$ref": f"#/$defs/D{n}"} for n in range(300)}
    definitions = {f"D{n}": {"properties": names if n < 3 else {"x": TEXT}} for n in range(300)}
    schema = checked_schema({"$ref": "#/$defs/D0", "$defs": definitions}, field="schema")
    assert shape_of(schema).checked('{"p1":{"p299":{"x":"y"}}}')


HUGE_NAME = "k" * 1_000_000


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "array", "items": {"type": "string"}}, list(range(100_000))),
        ({"type": "object", "additionalProperties": False}, {HUGE_NAME: 1}),
        ({"additionalProperties": {"type": "string"}}, {HUGE_NAME: 1}),
        ({"additionalProperties": {"type": "string"}}, {HUGE_NAME[:5_000]: 1}),
        ({"properties": {}, "additionalProperties": False}, {f"k{n}": n for n in range(50_000)}),
        ({"enum": [f"label {n}" for n in range(20_000)]}, "x" * 500_000),
        ({"required": [f"p{n}" for n in range(5_000)]}, {}),
        ({"type": "string", "maxLength": 3}, "x" * 1_000_000),
    ],
)  # fmt: skip
def test_a_message_about_a_large_answer_is_bounded(schema, value):
    with pytest.raises(WrongShapeError) as caught:
        shape_of(schema).checked(json.dumps(value))
    assert len(str(caught.value)) < 1_200


def test_a_message_about_many_choices_is_bounded():
    with pytest.raises(WrongShapeError) as caught:
        shape_of(None, tuple(f"label {n}" for n in range(20_000))).checked("x" * 100_000)
    assert len(str(caught.value)) < 1_300


def test_other_keywords_are_checked_though_no_provider_does():
    schema = {
        "type": "object",
        "patternProperties": {"^x": {"type": "integer"}},
        "not": {"required": ["b"]},
        "properties": {"mail": {"type": "string", "format": "email"}},
    }
    shape = shape_of(schema)
    assert shape.checked('{"x1":1,"mail":"a@b.de"}') == '{"x1":1,"mail":"a@b.de"}'
    for wrong in ('{"x1":"a"}', '{"b":1}', '{"mail":"a"}', '{"x1":null}'):
        with pytest.raises(WrongShapeError):
            shape.checked(wrong)


@settings(max_examples=200)
@given(st.text(max_size=200))
def test_no_answer_raises_anything_else(answer):
    for shape in (shape_of(REVIEW), shape_of(None, LABELS)):
        try:
            stored = shape.checked(answer)
        except WrongShapeError:
            continue
        assert shape.checked(stored) == stored
