"""Steps in tables: a column for each, or for each field of an answer in JSON."""

from __future__ import annotations

import msgspec
import pytest

from fanout.core.records import Chunk, ErrorKind, Outcome, Shard, StepOutcome
from fanout.core.spec import make_spec
from fanout.runs.outputs import output_of
from fanout.runs.rows import layout_of
from fanout.runs.tables.spool import MemorySpool
from fanout.runs.tables.table import gather

FACTS = {
    "type": "object",
    "properties": {"days": {"type": "integer"}, "term": {"type": "string"}},
}
KIND = {"name": "kind", "prompt": "{input}", "choices": ["bill", "letter"]}
STEPS = (
    KIND,
    {"name": "facts", "prompt": "{input}", "schema": FACTS},
    {"name": "code", "function": "package.module:function"},
    {"name": "note", "prompt": "{facts.days}"},
    {"name": "check", "judge": "note", "criteria": "polite"},
)
VERDICT = {"reasons": "r", "pass": False, "score": 3, "feedback": "more"}


def ran(name, answer, *, is_json=False):
    output = msgspec.json.encode(answer).decode() if is_json else answer
    return StepOutcome(name=name, output=output, is_json=is_json)


def branch(spec, *steps, output, index=0, columns=None, **fields):
    chunk = Chunk(text="t", document="d", document_index=0, columns=columns or {})
    shard = Shard(first=0, count=1, first_chunk=0, chunks=[chunk])
    outcome = Outcome(index=index, output=output, steps=steps, attempts=1, **fields)
    return output_of(spec, shard, outcome, with_text=False, types=spec.types)


def table(spec, *branches, is_wide=False):
    made = gather(branches, layout_of(spec), MemorySpool(), is_wide=is_wide)
    names = [column.name for column in made.columns]
    return [
        {name: cell for name, cell in zip(names, row, strict=True) if cell is not None}
        for row in made.typed_rows()
    ], made.columns


def test_each_step_has_a_column_beside_the_output_and_each_field_one():
    spec = make_spec(model="fake", steps=STEPS)
    whole = branch(
        spec,
        ran("kind", "bill"),
        ran("facts", {"days": 3, "term": "net"}, is_json=True),
        ran("code", {"on": 4}, is_json=True),
        ran("note", "dear"),
        ran("check", VERDICT, is_json=True),
        output="dear",
        is_rejected=True,
    )
    failed = branch(
        spec, ran("kind", "letter"), output=None, kind=ErrorKind.TIMEOUT, message="step facts: late"
    )
    (first, second), columns = table(spec, whole, failed)
    steps = {
        name: cell for name, cell in first.items() if name.partition(".")[0] in spec_names(spec)
    }
    assert steps == {
        "kind": "bill", "facts.days": 3, "facts.term": "net", "code.on": 4, "check.reasons": "r",
        "check.pass": False, "check.score": 3, "check.feedback": "more",
    }  # fmt: skip
    assert (first["output"], first["rejected"]) == ("dear", True)
    assert (second["kind"], second["error_kind"], second["rejected"]) == (
        "letter",
        "timeout",
        False,
    )
    assert "facts.days" not in second
    types = {column.name: column.type.value for column in columns}
    assert (types["facts.days"], types["check.pass"], types["rejected"]) == (
        "integer", "boolean", "boolean",
    )  # fmt: skip
    # The columns are there without a branch, too.
    assert {"kind", "facts.days", "facts.term", "check.score", "rejected"} <= {
        column.name for column in table(spec)[1]
    }


def spec_names(spec):
    return {step.name for step in spec.steps}


def test_a_name_that_is_taken_is_changed_as_that_of_another_column():
    steps = [
        {"name": "days", "prompt": "{input}"},
        {"name": "error", "prompt": "{input}"},
        {"name": "rejected", "prompt": "{input}"},
        {"name": "place", "prompt": "{input}"},
        {"name": "facts", "prompt": "{input}", "schema": FACTS},
        {"name": "check", "judge": "facts", "criteria": "right"},
    ]
    spec = make_spec(model="fake", steps=steps)
    done = [ran(name, name.upper()) for name in ("days", "error", "rejected", "place")]
    answer = ran("facts", {"days": 3, "term": "net"}, is_json=True)
    [row], columns = table(
        spec, branch(spec, *done, answer, output=answer.output, columns={"place": "here"})
    )
    assert {name: row[name] for name in ("days", "steps.days", "steps.error", "steps.rejected")} == {
        "days": 3, "steps.days": "DAYS", "steps.error": "ERROR", "steps.rejected": "REJECTED",
    }  # fmt: skip
    # As with each name of fanout's, the column of the input gives way.
    assert (row["place"], row["column.place"]) == ("PLACE", "here")
    names = [column.name for column in columns]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("is_wide", "prefix"), [(False, ""), (True, "output.")])
def test_columns_are_in_the_order_of_the_steps_and_a_field_keeps_its_name(is_wide, prefix):
    steps = [
        {"name": "code", "function": "package.module:function"},
        KIND,
        {"name": "facts", "prompt": "{input}", "schema": FACTS},
        {"name": "last", "function": "package.module:function"},
    ]
    spec = make_spec(model="fake", steps=steps)
    output = ran("last", {"kind": "own", "facts.days": 7}, is_json=True)
    whole = branch(
        spec,
        ran("code", {"on": 4}, is_json=True),
        ran("kind", "bill"),
        ran("facts", {"days": 3, "term": "net"}, is_json=True),
        output,
        output=output.output,
    )
    [row], columns = table(spec, whole, is_wide=is_wide)
    found = [one.name.removeprefix(prefix) for one in columns]
    assert found[: found.index("facts.term") + 1][-4:] == [
        "code.on", "steps.kind", "steps.facts.days", "facts.term",
    ]  # fmt: skip
    assert (row[f"{prefix}kind"], row[f"{prefix}steps.kind"]) == ("own", "bill")
    assert (row[f"{prefix}facts.days"], row[f"{prefix}steps.facts.days"]) == (7, 3)


def test_a_wide_table_has_the_steps_of_each_variant():
    spec = make_spec(model="fake", steps=[KIND, STEPS[3]], samples=2)
    rows, columns = table(
        spec,
        branch(spec, ran("kind", "bill"), ran("note", "a"), output="a"),
        branch(spec, ran("kind", "letter"), ran("note", "b"), output="b", index=1),
        is_wide=True,
    )
    assert [(row["output.0"], row["output.0.kind"]) for row in rows] == [("a", "bill")]
    assert [(row["output.1"], row["output.1.kind"]) for row in rows] == [("b", "letter")]
    assert len({column.name for column in columns}) == len(columns)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("text", {"output": "text"}),
        ({"on": 4}, {"on": 4}),
        ([1], {"output": [1]}),
        (7, {"output": 7}),
    ],
)
def test_an_output_of_a_function_is_the_value_that_it_returned(answer, found):
    spec = make_spec(model="fake", steps=[STEPS[2]])
    step = ran("code", answer, is_json=not isinstance(answer, str))
    made = branch(spec, step, output=step.output)
    assert made.output == answer
    [row], _ = table(spec, made)
    assert {name: row[name] for name in found} == {
        name: "[1]" if value == [1] else value for name, value in found.items()
    }


def test_the_steps_of_a_route_may_have_outputs_of_several_shapes():
    route = [
        KIND,
        {"name": "bill", "prompt": "{input}", "schema": FACTS, "when": {"kind": "bill"}},
        {"name": "letter", "prompt": "{input}", "when": {"kind": "letter"}},
    ]
    spec = make_spec(model="fake", steps=route)
    bill = ran("bill", {"days": 3, "term": "net"}, is_json=True)
    rows, _ = table(
        spec,
        branch(spec, ran("kind", "bill"), bill, output=bill.output),
        branch(spec, ran("kind", "letter"), ran("letter", "dear"), output="dear"),
    )
    assert [{name: row.get(name) for name in ("kind", "days", "output")} for row in rows] == [
        {"kind": "bill", "days": 3, "output": None},
        {"kind": "letter", "days": None, "output": "dear"},
    ]


@pytest.mark.parametrize("is_json", [False, True])
@pytest.mark.parametrize("is_wide", [False, True])
def test_the_answer_for_the_output_is_there_where_a_judge_behind_it_failed(is_json, is_wide):
    note = {"name": "note", "prompt": "{input}", **({"schema": FACTS} if is_json else {})}
    judge = {"name": "check", "judge": "note", "criteria": "polite"}
    spec = make_spec(model="fake", steps=(note, judge))
    answer = ran("note", {"days": 3}, is_json=True) if is_json else ran("note", "dear")
    failed = branch(spec, answer, output=None, kind=ErrorKind.TIMEOUT, message="late")
    done = branch(spec, answer, ran("check", VERDICT, is_json=True), output=answer.output)
    prefix = "output." if is_wide else ""
    name, value = ("note.days", 3) if is_json else ("note", "dear")
    [row], _ = table(spec, failed, is_wide=is_wide)
    assert row[prefix + name] == value
    [row], columns = table(spec, done, is_wide=is_wide)
    assert prefix + name not in {column.name for column in columns}


def test_each_answer_that_may_be_the_output_is_in_the_table():
    # Two ways that both run: the output is the later one's.
    steps = (
        {"name": "a", "prompt": "{input}", "schema": FACTS},
        {"name": "b", "prompt": "{input}", "when": {"a.term": "x"}},
        {"name": "c", "prompt": "{input}", "when": {"a.days": "3"}},
    )
    spec = make_spec(model="fake", steps=steps)
    first = ran("a", {"days": 3, "term": "x"}, is_json=True)
    both = branch(spec, first, ran("b", "B"), ran("c", "C"), output="C")
    one = branch(spec, first, ran("b", "B"), output="B", index=0)
    rows, _ = table(spec, both, one)
    assert [(row["output"], row.get("b"), row.get("c")) for row in rows] == [
        ("C", "B", None), ("B", None, None),
    ]  # fmt: skip
