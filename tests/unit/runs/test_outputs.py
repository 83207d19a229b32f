"""The columns of a branch that has failed before its call."""

from __future__ import annotations

import json
from itertools import product

import pytest

from fanout.core.records import Chunk, ErrorKind, Outcome, Shard, Usage
from fanout.core.spec import make_spec
from fanout.inputs.documents import FileSource, Items
from fanout.inputs.splitters import make_splitter, split_documents
from fanout.report.models import ModelCounter
from fanout.runs.outputs import output_of
from fanout.runs.rows import error_row, layout_of, output_row, source_cells, stream_row
from fanout.runs.tables.spool import MemorySpool
from fanout.runs.tables.table import gather

BLANK = ["", "   ", "\n\t"]
LOST = [None, 3, ["a"]]


def text_that_comes_out(document):
    [chunk] = split_documents([document], make_splitter("none", chunk_tokens=10))
    shard = Shard(first=0, count=1, first_chunk=0, chunks=[chunk])
    failed = Outcome(index=0, kind=ErrorKind.BAD_REQUEST, message="as it is")
    spec = make_spec(model="fake", prompt="{input}")
    return source_cells(output_of(spec, shard, failed, with_text=False))["text"]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *product(["jsonl", "json", "csv", "memory"], BLANK),
        # All cells of CSV are text.
        *product(["jsonl", "json", "memory"], LOST),
    ],
)
def test_a_text_that_is_empty_comes_out_as_it_was_and_a_missing_one_is_missing(
    tmp_path, kind, text
):
    path = tmp_path / f"rows.{kind}"
    row = {"id": "1", "text": text}
    if kind == "memory":
        [document] = Items([row], text_column=None, max_bytes=1_000).documents()
    else:
        cells = f'id,text\n1,"{text}"\n'
        path.write_text(cells if kind == "csv" else json.dumps(row))
        [document] = FileSource([str(path)], max_bytes=1_000).documents()
    assert document.error is not None
    assert text_that_comes_out(document) == (text if text in BLANK else None)


def answered_by(models, *outcomes, **fields):
    spec = make_spec(model=models, prompt="{input}", **fields)
    chunk = Chunk(text="t", document="d", document_index=0)
    shard = Shard(first=0, count=len(outcomes), first_chunk=0, chunks=[chunk])
    return layout_of(spec), [output_of(spec, shard, one, with_text=False) for one in outcomes]


def test_a_row_says_which_model_was_asked_where_another_may_have_answered():
    layout, outputs = answered_by(
        ["a", "b"], Outcome(index=0, output="x", model="b"), Outcome(index=1, output="y"),
        fallback="b",
    )  # fmt: skip
    pairs = [("b", "a"), ("b", "b")]
    for row in (output_row, error_row, stream_row):
        assert [(one["model"], one["asked_model"]) for one in map(row, outputs)] == pairs
    table = gather(outputs, layout, MemorySpool())
    names = [column.name for column in table.columns]
    at = names.index("model")
    assert names[at : at + 2] == ["model", "asked_model"]
    assert [tuple(row[at : at + 2]) for row in table.rows()] == pairs


def test_rows_of_a_job_without_a_fallback_have_the_model_alone():
    layout, outputs = answered_by(["a", "b"], Outcome(index=0, output="x"))
    assert [one.asked_model for one in outputs] == ["a"]
    assert "asked_model" not in output_row(outputs[0])
    table = gather(outputs, layout, MemorySpool())
    assert "asked_model" not in {column.name for column in table.columns}


@pytest.mark.parametrize(
    ("fields", "outcomes", "ended", "called"),
    [
        ({"fallback": "b"}, [Outcome(index=0, output="x", model="b", attempts=2,
                                     usage=Usage(calls=2),
                                     usage_of={"a": Usage(calls=1), "b": Usage(calls=1)}),
                             Outcome(index=1, output="y", attempts=1, usage=Usage(calls=1))],
         {"a": (1, 0), "b": (1, 0)}, {"a": 1, "b": 2}),
        ({"fallback": "c"}, [Outcome(index=0, output="x", model="c", attempts=1,
                                     usage=Usage(calls=1), usage_of={"c": Usage(calls=1)}),
                             Outcome(index=1, kind=ErrorKind.TIMEOUT, attempts=1,
                                     usage=Usage(calls=1))],
         {"a": (1, 0), "b": (0, 1)}, {"c": 1, "b": 1}),
        # One branch asks all models: its answer is that of none.
        ({"certainty": 0.9}, [Outcome(index=0, output="x", attempts=2, samples=2,
                                      usage=Usage(calls=2),
                                      usage_of={"a": Usage(calls=1), "b": Usage(calls=1)})],
         {}, {"a": 1, "b": 1}),
    ],
)  # fmt: skip
def test_the_page_counts_branches_by_the_model_asked_and_calls_by_the_model_called(
    fields, outcomes, ended, called
):
    counter = ModelCounter()
    for output in answered_by(["a", "b"], *outcomes, **fields)[1]:
        counter.add(output)
    figures = counter.figures()
    asked = {one.name: (one.succeeded, one.failed) for one in figures if one.was_asked_first}
    assert asked == ended
    assert {one.name: one.usage.calls for one in figures if one.usage.calls} == called
