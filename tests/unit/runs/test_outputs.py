"""The columns of a branch that has failed before its call."""

from __future__ import annotations

import json
from itertools import product

import pytest

from fanout.core.records import ErrorKind, Outcome, Shard
from fanout.core.spec import make_spec
from fanout.inputs.documents import FileSource, Items
from fanout.inputs.splitters import make_splitter, split_documents
from fanout.runs.outputs import output_of
from fanout.runs.rows import source_cells

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
