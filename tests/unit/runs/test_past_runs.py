"""The outputs of one run are the documents of another."""

from __future__ import annotations

import json
from collections import Counter
from itertools import count
from typing import Any

import pytest

from fanout.core.errors import InputError, SpecError
from fanout.core.passage_uses import PassageUse
from fanout.core.records import ErrorKind, RunStatus, StepOutcome, Usage
from fanout.core.spec import make_spec
from fanout.inputs.intake import checked_documents
from fanout.inputs.splitters import make_splitter, split_documents
from fanout.runs.branch_output import Output
from fanout.runs.past_runs import RunOutputs
from fanout.runs.status import Status

JOB = {"model": "fake", "prompt": "{input}"}
ASPECTS = {"model": "fake", "aspects": {"a": "{input}", "b": "x {input}"}}
PLACE: dict[str, Any] = {
    "document_index": 0, "chunk": 0, "position": 0, "start": 0, "end": 4, "aspect": None, "sample": 0,
    "message": None, "attempts": 1, "usage": Usage(), "elapsed_s": 0.1,
}  # fmt: skip


def output(index, answer: str | None = "fine", kind=None, **fields):
    given = {"document": f"d{index}", "output": answer, "kind": kind, **fields}
    return Output(index=index, **{**PLACE, **given})


def row(index, answer="fine", columns=None, text_column="text", **fields):
    """A branch of a row whose text was its second column."""
    columns = {"id": index, "stars": 3} if columns is None else columns
    return output(
        index, answer, columns=columns, text_at=1, text="old", text_column=text_column, **fields
    )


def status_of(outputs, status=RunStatus.SUCCEEDED):
    failed = sum(one.kind is not None for one in outputs)
    total, errors = len(outputs), Counter(one.kind for one in outputs if one.kind)
    return Status(
        run_id="abc", status=status, total=total, done=total, succeeded=total - failed, failed=failed,
        errors=errors, usage=Usage(), created_at=0.0, elapsed_s=1.0, stage=0, error=None, workers=1,
    )  # fmt: skip


def past_run(outputs, job=None, status=RunStatus.SUCCEEDED, kept=None):
    spec = make_spec(**(job or JOB))
    return RunOutputs(spec, status_of(outputs, status), lambda: outputs if kept is None else kept)


def documents(outputs, job=None, text_column=None):
    run = past_run(outputs, job)
    return list(run.documents(count(), text_column=text_column, max_bytes=1_000))


def test_an_output_is_a_row_with_the_columns_of_its_own():
    (document,) = documents([row(7, pages=[3, 4], headings="A > B")])
    assert (document.name, document.text, document.index) == ("d7", "fine", 0)
    assert list(document.columns.items()) == [("id", 7), ("text", "old"), ("stars", 3)]
    assert (document.text_at, document.text_column) == (3, "output")
    assert document.headings == [(0, "A > B")]
    # Its pages are those of the first run, whichever part of the answer a chunk is.
    for split in ("none", "lines"):
        chunks = split_documents([document], make_splitter(split, chunk_tokens=9))
        assert [(chunk.pages, chunk.headings) for chunk in chunks] == [([3, 4], "A > B")]


@pytest.mark.parametrize(
    ("job", "fields", "columns"),
    [
        (JOB, {}, {}),
        ({**ASPECTS, "samples": 1}, {"aspect": "b"}, {"aspect": "b"}),
        ({**JOB, "samples": 2}, {"sample": 1}, {"sample": 1}),
        ({**JOB, "reduce": "rank"}, {"has_rank": True, "rank": 3}, {"rank": 3}),
        ({**ASPECTS, "samples": 2}, {"aspect": "a", "sample": 1}, {"aspect": "a", "sample": 1}),
        ({"model": "fake", "aspects": {"a": "{input}"}}, {"aspect": "a"}, {}),
        ({**JOB, "split": "model"}, {"title": "Part"}, {"title": "Part"}),
        (
            {**JOB, "split": "model", "prompt": "{subtask} {input}"},
            {"title": "Part", "subtask": "Do it."},
            {"title": "Part", "subtask": "Do it."},
        ),
        (
            {**JOB, "prompt": "{context} {input}", "retrieve": "notes.md"},
            {"passages": (PassageUse(id="p1", source="a.md"),)},
            {"passages": [{"id": "p1", "source": "a.md"}]},
        ),
    ],
)
def test_what_a_run_has_of_a_branch_is_in_columns(job, fields, columns):
    (document,) = documents([output(0, **fields)], job)
    assert document.columns == columns


def test_a_name_of_fanouts_own_means_fanouts_and_no_cell_is_lost():
    columns = {"output": 1, "column.output": 2, "aspect": 3, "sample": 4}
    (document,) = documents([row(0, columns=columns, aspect="b")], ASPECTS)
    assert document.text == "fine"
    assert document.columns == {
        "column.output": 1, "text": "old", "column.column.output": 2, "column.aspect": 3,
        "sample": 4, "aspect": "b",
    }  # fmt: skip
    # Three runs in a row.
    (third,) = documents([row(0, "new", columns={"text": "first"}, text_column="output")])
    assert (third.text, third.columns) == ("new", {"text": "first", "column.output": "old"})


def test_the_fields_of_an_answer_are_columns_and_lose_to_columns():
    answer = {"score": 3, "id": "x", "why": {"a": [1]}, "aspect": "y"}
    outputs = [
        row(0, json.dumps(answer), aspect="b"),
        row(1, "[1]", aspect="b"),
        row(2, f"Sure:\n```json\n{json.dumps({'score': 4})}\n```", aspect="b"),
    ]
    first, second, third = documents(outputs, {**ASPECTS, "output_format": "json"})
    assert json.loads(first.text) == answer
    assert {name: first.columns[name] for name in ("score", "output.id", "why", "id")} == {
        "score": 3, "output.id": "x", "why": {"a": [1]}, "id": 0,
    }  # fmt: skip
    assert (first.columns["aspect"], first.columns["output.aspect"]) == ("b", "y")
    assert "score" not in second.columns
    assert third.columns["score"] == 4
    # Text that happens to be JSON is text.
    (plain,) = documents([row(0, json.dumps(answer))])
    assert "score" not in plain.columns


def test_the_steps_of_a_run_are_columns_as_in_its_tables():
    facts = {"type": "object", "properties": {"days": {"type": "integer"}, "kind": {}}}
    steps: list[dict[str, Any]] = [
        {"name": "kind", "prompt": "{input}", "choices": ["bill", "letter"]},
        {"name": "facts", "prompt": "{input}", "schema": facts, "when": {"kind": "bill"}},
        {"name": "code", "function": "package.module:function"},
        {"name": "note", "prompt": "{input}"},
        {"name": "check", "judge": "note", "criteria": "c"},
    ]
    done = [
        StepOutcome(name="kind", output="bill"),
        StepOutcome(name="facts", output='{"days": 3}', is_json=True),
        StepOutcome(name="code", output='{"on": [4]}', is_json=True),
    ]
    outputs = [
        row(0, columns={"kind": "of the input", "id": 1}, step_records=done, is_rejected=True),
        row(1, columns={"kind": "of the input"}, step_records=done[:1], is_rejected=False),
    ]
    first, second = documents(outputs, {"model": "fake", "steps": steps})
    names = ("kind", "column.kind", "facts.days", "code.on", "rejected", "id")
    assert [first.columns[name] for name in names] == ["bill", "of the input", 3, [4], True, 1]
    # A step that did not run has empty cells, so that later prompts can name them.
    assert [second.columns[name] for name in (*names[:3], "rejected")] == [
        "bill", "of the input", None, False,
    ]  # fmt: skip
    # A field of the output has the name, as in tables.
    ends = [steps[0], {**steps[1], "when": {"kind": ["bill", "letter"]}}]
    [typed] = documents(
        [row(0, {"days": 3, "kind": "x"}, step_records=done[:1])],
        {"model": "fake", "steps": ends},
    )
    assert (typed.columns["kind"], typed.columns["steps.kind"]) == ("x", "bill")


def test_another_column_may_be_the_text():
    (document,) = documents([row(0)], text_column="text")
    assert (document.text, document.columns) == ("old", {"id": 0, "stars": 3, "output": "fine"})
    (missing,) = documents([row(0)], text_column="nope")
    assert "no column 'nope' (it has: id, text, stars, output)" in missing.error


def test_what_workers_have_read_are_documents_again():
    job = {**JOB, "model": "fanout.inputs.reader:read"}
    read = {"text": "one two", "pages": [0, 4], "headings": [[4, "Two"]]}
    outputs = [
        output(0, json.dumps(read), columns={"source": "s3://x"}),
        output(1, "no JSON"),
        output(2, '{"text": ""}'),
    ]
    document, broken, empty = documents(outputs, job)
    assert (document.text, document.columns) == ("one two", {"source": "s3://x"})
    assert (document.pages, document.headings) == ([0, 4], [(4, "Two")])
    assert "gave no document" in broken.error
    assert "empty" in empty.error


# As the input of a job.


def read(fields, runs, notices=None):
    def open_run(run_id):
        return runs[run_id]

    notify = (lambda _one: None) if notices is None else notices.append
    found = checked_documents(
        make_spec(**{**JOB, **fields}), None, notify=notify, open_run=open_run
    )
    return [(one.name, one.text, one.index) for one in found]


def test_runs_stand_beside_files(tmp_path):
    (tmp_path / "a.txt").write_text("file")
    runs = {"x": past_run([row(0), row(1)]), "y": past_run([output(2, "last")])}
    inputs = ["run:x", str(tmp_path / "a.txt"), "run: y"]
    found = read({"inputs": inputs, "prompt": "{input} {text}"}, runs)
    assert [one[1:] for one in found] == [("fine", 0), ("fine", 1), ("file", 2), ("last", 3)]
    assert [one[0] for one in found][::3] == ["d0", "d2"]


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"where": "output contains a"}, ["d0", "d2"]),
        ({"where": "text = old and id > 0"}, ["d1", "d2"]),
        ({"id_column": "id", "limit": 2}, ["0", "1"]),
        ({"sample": 3, "limit": 2}, ["d0", "d1"]),
    ],
)
def test_the_rows_of_a_run_are_rows_as_any(fields, names):
    runs = {"x": past_run([row(0, "a"), row(1, "b"), row(2, "ca")])}
    assert [one[0] for one in read({"inputs": "run:x", **fields}, runs)] == names


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        ([ErrorKind.TIMEOUT], "(`fanout retry abc` processes it again)"),
        ([ErrorKind.TIMEOUT] * 2, "(`fanout retry abc` processes them again)"),
        ([ErrorKind.BAD_REQUEST], "(`fanout errors abc` says why, and a retry does not help)"),
        (
            [ErrorKind.BAD_REQUEST, ErrorKind.TIMEOUT],
            "(`fanout retry abc` processes 1 of them again)",
        ),
    ],
)
def test_a_retry_is_advised_where_it_helps(kinds, words):
    outputs = [row(0), *(row(at, None, kind=kind) for at, kind in enumerate(kinds, 1))]
    assert str(past_run(outputs).left_out).endswith(words)


def test_what_a_run_lacks_is_reported_and_refused_where_all_is_wanted():
    outputs = [row(0), row(1, None, kind=ErrorKind.TIMEOUT)]
    notices: list[Any] = []
    assert len(read({"inputs": "run:x"}, {"x": past_run(outputs)}, notices)) == 1
    assert notices[0].is_warning
    assert "run:x: 1 of 2 branches have no output, and are left out" in notices[0].text
    with pytest.raises(InputError, match="strict: run:x: 1 of 2 branches have no output"):
        read({"inputs": "run:x", "strict": True}, {"x": past_run(outputs)})
    stopped = past_run([row(0)], status=RunStatus.CANCELLED)
    assert "was cancelled, and may not have read its whole input" in str(stopped.left_out)
    assert past_run([row(0)], status=RunStatus.FAILED).left_out is None


@pytest.mark.parametrize("status", [one for one in RunStatus if not one.has_ended])
def test_a_run_that_goes_on_is_no_input(status):
    with pytest.raises(
        InputError, match=rf"run:abc: has not ended \({status.value}, 1 of 1 .*watch abc"
    ):
        past_run([row(0)], status=status)


def test_a_run_without_an_output_is_no_input():
    with pytest.raises(InputError, match=r"run:abc: has no output .*fanout errors abc"):
        past_run([row(0, None, kind=ErrorKind.AUTH)], status=RunStatus.FAILED)


@pytest.mark.parametrize("kept", [[], [row(0), row(1, None, kind=ErrorKind.TIMEOUT)]])
def test_a_run_that_changes_while_it_is_read_does_not_pass_for_the_whole(kept):
    run = past_run([row(0), row(1)], kept=kept)
    with pytest.raises(InputError, match="changed while it was read: it had 2 outputs"):
        list(run.documents(count(), text_column=None, max_bytes=99))


def test_how_files_are_read_has_no_effect_on_a_run():
    for field, value in (("delimiter", ";"), ("base_dir", "/x")):
        with pytest.raises(SpecError, match=f"^{field}: has no effect"):
            read({"inputs": "run:x", field: value}, {"x": past_run([row(0)])})


def test_a_run_without_a_reader_of_runs_is_an_error():
    with pytest.raises(InputError, match="the outputs of runs cannot be read here"):
        checked_documents(make_spec(**JOB, inputs="run:x"), None)
