"""Answers with a schema: what callers, files, tables and other runs get of them."""

from __future__ import annotations

import dataclasses
import json
import typing
from datetime import date
from enum import Enum
from itertools import count
from typing import Any, Literal, TypeVar

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator
from typing_extensions import TypedDict

from fanout.client.run import Run
from fanout.core.answer_shape import shape_of
from fanout.core.answer_types import UNTYPED, AnswerType
from fanout.core.records import Chunk, ErrorKind, Outcome, RunStatus, Shard, Usage
from fanout.core.spec import make_spec, stored_spec
from fanout.runs.outputs import output_of, typed_value
from fanout.runs.past_runs import RunOutputs
from fanout.runs.results import Result
from fanout.runs.rows import layout_of, stream_row
from fanout.runs.status import Status
from fanout.runs.tables.spool import MemorySpool
from fanout.runs.tables.table import gather
from tests.fakes import RUN, FakeContext


class Mood(Enum):
    GOOD = "good"
    BAD = "bad"


class Review(BaseModel):
    why: str
    stars: int = Field(ge=1, le=5)
    mood: Mood | None = None
    seen: date | None = None


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.5


class Pair(TypedDict):
    first: str
    second: list[int]


K = TypeVar("K")


class OldPair(typing.TypedDict, total=False):
    first: str
    second: typing.Required[list[int]]


class OldRow(OldPair):
    point: typing.NotRequired[Point]
    below: typing.NotRequired[list[OldRow]]


class OldBox(typing.TypedDict, typing.Generic[K]):
    inside: K


class Aliased(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    order_id: str = Field(alias="order-id")


class Node(BaseModel):
    name: str
    below: list[Node] = []


class Even(BaseModel):
    n: int

    @field_validator("n")
    @classmethod
    def is_even(cls, n: int) -> int:
        if n % 2:
            raise ValueError("must be even")
        return n


REVIEW = Review(why="it is", stars=4, mood=Mood.GOOD, seen=date(2026, 1, 2))
# Types, an answer as a model gives it, and its instance.
TYPES: list[tuple[Any, str, Any]] = [
    (Review, '{"why":"it is","stars":4,"mood":"good","seen":"2026-01-02"}', REVIEW),
    (Review, '{"why":"it is","stars":4,"mood":null,"more":[1]}', Review(why="it is", stars=4)),
    (Point, '{"x":3}', Point(3)),
    (Pair, '{"first":"a","second":[1,2]}', {"first": "a", "second": [1, 2]}),
    (OldPair, '{"second":[1]}', {"second": [1]}),
    (
        OldRow | None,
        '{"second":[],"below":[{"second":[2]}],"point":{"x":1}}',
        {"second": [], "below": [{"second": [2]}], "point": Point(1)},
    ),
    (
        dict[str, OldBox[OldPair]],
        '{"a":{"inside":{"second":[1]}}}',
        {"a": {"inside": {"second": [1]}}},
    ),
    (Aliased, '{"order-id":"7"}', Aliased(**{"order-id": "7"})),
    (Node, '{"name":"a","below":[{"name":"b"}]}', Node(name="a", below=[Node(name="b")])),
    (list[Point], '[{"x":1,"y":2}]', [Point(1, 2.0)]),
    (list[int], "[1,2]", [1, 2]),
    (dict[str, int], '{"a":1}', {"a": 1}),
    (Literal["yes", "no"], '"yes"', "yes"),
    (Mood, '"bad"', Mood.BAD),
    (Mood, "bad", Mood.BAD),
    (Literal["yes", "5"], "<think>4 or 5</think>\n5", "5"),
    (Literal["yes", "no"], "```\nyes\n```", "yes"),
    (date, "2026-01-02", date(2026, 1, 2)),
    (str, "It is {so}.", "It is {so}."),
    (str | None, "null", None),
    (str | int, "7", 7),
    (int, "7", 7),
    (bool, "true", True),
    (Review | None, "null", None),
    (int | None, "null", None),
]


def output(spec, text, index=0):
    chunk = Chunk(text="t", document=f"d{index}", document_index=index)
    shard = Shard(first=index, count=1, first_chunk=index, chunks=[chunk])
    outcome = Outcome(index=index, output=text, attempts=1)
    return output_of(spec, shard, outcome, with_text=False, types=spec.types)


def stored(spec):
    """The spec as another process reads it."""
    return stored_spec(spec.model_dump_json())


@pytest.mark.parametrize(("kind", "answer", "instance"), TYPES)
def test_an_answer_is_an_instance_of_its_type_and_a_json_value_elsewhere(kind, answer, instance):
    spec = make_spec(model="fake", prompt="{input}", schema=kind)
    text = shape_of(spec.schema).checked(answer)
    made = output(spec, text)
    assert (made.output, type(made.output)) == (instance, type(instance))
    assert (made.value, made.kind) == (json.loads(text), None)
    elsewhere = output(stored(spec), text)
    assert (elsewhere.output, elsewhere.json) == (json.loads(text), None)
    assert stream_row(made) == stream_row(elsewhere), "files do not depend on the type"
    assert stream_row(made)["output"] == json.loads(text)


def test_types_stay_with_a_spec_that_is_changed_and_not_with_one_that_is_stored():
    spec = make_spec(model="fake", prompt="{input}", schema=Review, reduce="llm",
                     aggregate_prompt="{input}", aggregate_schema=list[Point])  # fmt: skip
    changed = spec.model_copy(update={"base_dir": "/"})
    assert changed.types.answer.kind is Review
    assert changed.types.aggregate.kind == list[Point]
    assert stored(spec).types.answer is None
    assert stored(spec) == make_spec(**stored(spec).model_dump(exclude_defaults=True))


def test_a_check_that_only_python_knows_makes_the_branch_invalid():
    spec = make_spec(model="fake", prompt="{input}", schema=Even)
    made = output(spec, '{"n":3}')
    assert (made.output, made.kind) == (None, ErrorKind.INVALID_OUTPUT)
    assert made.message == "/n: Value error, must be even (got 3)"
    assert typed_value(AnswerType(Even), {"n": 4}, "the aggregate") == (Even(n=4), [])
    value, [note] = typed_value(AnswerType(Even), {"n": 3}, "the aggregate")
    assert value is None
    assert note == "the aggregate is no Even: /n: Value error, must be even (got 3)"


def test_a_note_says_what_the_aggregate_counts_although_python_refuses_it():
    context = FakeContext(schema=Even, reduce="table", measures=["count"])
    context.write(list("1234"))
    context.answer = lambda request: f'{{"n":{request.prompt}}}'
    context.process()
    types = make_spec(model="fake", prompt="{input}", schema=Even).types
    for typed, refused in ((types, 2), (UNTYPED, 0)):
        run = Run(RUN, context.store, None, lambda: None, typed)
        made = run.result()
        assert made.aggregated == [{"count": 4}]
        assert len(made.errors) == refused
        notes = [note for note in made.notes if "Even" in note]
        assert len(notes) == (refused > 0)
        assert all(note.startswith("2 answers are no Even") for note in notes)


def result(spec, texts):
    return Result(
        run_id="abc", status=RunStatus.SUCCEEDED, aggregated=REVIEW, notes=[],
        branches=[output(spec, text, at) for at, text in enumerate(texts)], reduce_errors=[],
        usage=Usage(calls=2), error=None, elapsed_s=2.0, layout=layout_of(spec),
        aggregated_json={"why": "it is", "stars": 4},
    )  # fmt: skip


ANSWERS = ['{"stars":4,"why":"it is"}', '{"why":"not","stars":2,"mood":"bad","more":1}']


def test_files_have_the_json_values_of_instances(tmp_path):
    made = result(make_spec(model="fake", prompt="{input}", schema=Review), ANSWERS)
    assert made.outputs[0] == Review(why="it is", stars=4)
    assert made.to_dict()["branches"][1]["output"] == json.loads(ANSWERS[1])
    made.save(tmp_path / "out")
    lines = (tmp_path / "out" / "outputs.jsonl").read_text().splitlines()
    assert [json.loads(line)["output"] for line in lines] == list(map(json.loads, ANSWERS))
    assert json.loads((tmp_path / "out" / "aggregated.json").read_text())["stars"] == 4
    made.save(tmp_path / "out.csv")
    header, first, _ = (tmp_path / "out.csv").read_text().splitlines()
    assert header.startswith("why,stars,mood,seen,more,error_kind,")
    assert first.startswith("it is,4,,,,,")
    assert "<td" in made._repr_html_()
    assert "stars" in repr(made)


def test_a_table_has_a_column_for_each_field_in_the_order_of_the_schema():
    spec = make_spec(model="fake", prompt="{input}", schema=Review)
    for given in (spec, stored(spec)):
        frame = result(given, ANSWERS).to_pandas()
        assert list(frame.columns)[:5] == ["why", "stars", "mood", "seen", "more"]
        assert frame["stars"].dtype.kind == "i"
    # Also where no answer has any.
    table = gather([], layout_of(spec), MemorySpool())
    assert [column.name for column in table.columns][:4] == ["why", "stars", "mood", "seen"]


def test_fields_with_the_names_of_other_columns_are_told_from_them():
    schema = {"type": "object", "properties": {"error": {"type": "string"}, "chunk": {}}}
    spec = make_spec(model="fake", prompt="{input}", schema=schema)
    frame = result(spec, ['{"chunk":"x","error":"none"}']).to_pandas()
    assert list(frame.columns)[:3] == ["output.error", "output.chunk", "error_kind"]
    assert list(frame.iloc[0])[:2] == ["none", "x"]


@pytest.mark.parametrize(
    ("kind", "texts", "cells", "dtype"),
    [
        (int, ["7", "8"], [7, 8], "i"),
        (float, ["0.5", "2"], [0.5, 2.0], "f"),
        (bool, ["true", "false"], [True, False], "b"),
        (list[int], ["[1,2]", "[]"], ["[1, 2]", "[]"], None),
        # A text that looks like JSON is a text.
        (str, ['"{\\"a\\":1}"', '"b"'], ['{"a":1}', "b"], None),
        (int, [str(2**70), "1"], [str(2**70), "1"], None),
    ],
)
def test_an_answer_that_is_no_object_is_one_column(kind, texts, cells, dtype):
    frame = result(make_spec(model="fake", prompt="{input}", schema=kind), texts).to_pandas()
    assert next(iter(frame.columns)) == "output"
    assert list(frame["output"]) == cells
    assert dtype is None or frame["output"].dtype.kind == dtype


def test_a_wide_table_has_the_fields_of_each_aspect():
    spec = make_spec(model="fake", aspects={"a": "{input}", "b": "{input}"}, schema=Point)
    layout = layout_of(spec)
    table = gather([], layout, MemorySpool(), is_wide=True)
    names = [column.name for column in table.columns]
    assert names[:8] == ["a.x", "a.y", "a.error_kind", "a.error", "b.x", "b.y", "b.error_kind",
                         "b.error"]  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "text", "shown", "fields"),
    [
        (Review, ANSWERS[0], ANSWERS[0].replace(":", ": ").replace(",", ", "),
         {"stars": 4, "why": "it is"}),
        (list[int], "[1,2]", "[1, 2]", {}),
        (Literal["yes", "no"], '"yes"', "yes", {}),
    ],
)  # fmt: skip
def test_the_answers_of_a_run_are_the_rows_of_another(schema, text, shown, fields):
    spec = stored(make_spec(model="fake", prompt="{input}", schema=schema))
    status = Status(
        run_id="abc", status=RunStatus.SUCCEEDED, total=1, done=1, succeeded=1, failed=0, errors={},
        usage=Usage(), created_at=0.0, elapsed_s=1.0, stage=0, error=None, workers=1,
    )  # fmt: skip
    run = RunOutputs(spec, status, lambda: [output(spec, text)])
    [document] = run.documents(count(), text_column=None, max_bytes=1_000)
    assert (document.text, document.columns) == (shown, fields)
