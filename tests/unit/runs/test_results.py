"""What a caller of the library can do with a result."""

from __future__ import annotations

import dataclasses
import json
import re
import stat
import sys
from dataclasses import fields, replace
from html.parser import HTMLParser

import pandas as pd
import polars as pl
import pytest
from pyarrow import parquet

from fanout.core.errors import InputError
from fanout.core.records import ErrorKind, RunStatus, StepOutcome, Usage
from fanout.runs.branch_output import Output
from fanout.runs.results import Result
from fanout.runs.rows import RowLayout
from fanout.runs.status import ReduceError


def branch(index, kind=None):
    return Output(
        index=index, document=f"d{index}", document_index=index, chunk=index, position=0, start=0,
        end=5, aspect=None, sample=0, output=None if kind else "x" * 300, kind=kind,
        message="too slow" if kind else None, attempts=1, usage=Usage(calls=1), elapsed_s=0.5,
        columns={"who": "Ann"},
    )  # fmt: skip


def result(count=200, aggregated="all " * 100):
    return Result(
        run_id="abc", status=RunStatus.SUCCEEDED, aggregated=aggregated, notes=["a note"],
        branches=[branch(i, ErrorKind.TIMEOUT if i == 1 else None) for i in range(count)],
        reduce_errors=[], usage=Usage(calls=count), error=None, elapsed_s=2.0,
    )  # fmt: skip


def test_a_result_is_shown_in_one_short_line():
    shown = repr(result())
    assert len(shown) < 400
    assert "\n" not in shown
    for part in (
        "run_id='abc'", "status='succeeded'", "branches=200", "failed=1", "errors={'timeout': 1}",
        "calls=200", "cost_usd=None",
    ):  # fmt: skip
        assert part in shown
    assert len(result().outputs) == 200


def test_a_result_as_a_dictionary_says_all_of_it():
    made = json.loads(json.dumps(result(3).to_dict()))
    assert (made["run_id"], made["total"], made["failed"]) == ("abc", 3, 1)
    assert (made["errors"], made["notes"]) == ({"timeout": 1}, ["a note"])
    assert made["usage"] == {**Usage(calls=3).to_dict()}
    good, bad, _ = made["branches"]
    assert (good["output"], good["kind"], good["columns"]) == ("x" * 300, None, {"who": "Ann"})
    assert (bad["output"], bad["kind"], bad["message"]) == (None, "timeout", "too slow")
    assert good.keys() == bad.keys()


def test_an_error_says_where_in_the_input_its_branch_is():
    steps = (
        StepOutcome(name="kind", output="bill"),
        StepOutcome(name="note", kind=ErrorKind.TIMEOUT),
    )
    bad = replace(branch(1, ErrorKind.TIMEOUT), pages=[3, 4], headings="Terms", step_records=steps)
    [error] = replace(result(3), branches=[branch(0), bad]).errors
    for field in fields(error):
        assert getattr(error, field.name) == getattr(bad, field.name)
    assert (error.pages, error.headings, error.columns) == ([3, 4], "Terms", {"who": "Ann"})
    assert error.steps == {"kind": "bill"}


def test_a_result_is_saved_to_a_folder_as_the_command_line_does(tmp_path):
    result(3, {"a": 1}).save(tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["aggregated.json", "errors.jsonl", "outputs.jsonl", "run.json"]
    assert len((tmp_path / "out" / "outputs.jsonl").read_text().splitlines()) == 2
    assert json.loads((tmp_path / "out" / "run.json").read_text())["succeeded"] == 2
    with pytest.raises(InputError, match=r"out has results already .*or replace=True to replace"):
        result(3).save(tmp_path / "out")
    result(3).save(tmp_path / "out", replace=True)
    assert (tmp_path / "out" / "aggregated.txt").read_text().startswith("all ")


def test_a_folder_has_the_failed_calls_of_the_reduce_behind_the_failed_branches(tmp_path):
    call = ReduceError(
        reduce="sum", group="g", kind=ErrorKind.SERVER_ERROR, message="500", attempts=3
    )
    replace(result(3), reduce_errors=[call]).save(tmp_path / "out")
    lines = (tmp_path / "out" / "errors.jsonl").read_text().splitlines()
    branch_row, call_row = map(json.loads, lines)
    assert (branch_row["index"], branch_row["kind"]) == (1, "timeout")
    expected = {
        "reduce": "sum", "group": "g", "kind": "server_error", "message": "500", "attempts": 3,
    }  # fmt: skip
    assert call_row == {"index": None, **expected}
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["reduce_errors"] == [expected]


@pytest.mark.parametrize("name", ["r.json", "new/r.jsonl"])
def test_a_result_is_saved_to_a_file(tmp_path, name):
    path = tmp_path / name
    result(3).save(str(path))
    text = path.read_text()
    rows = (
        json.loads(text)["branches"]
        if name == "r.json"
        else list(map(json.loads, text.splitlines()))
    )
    assert [row["index"] for row in rows] == [0, 1, 2]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(InputError, match="is there already: give replace=True"):
        result(1).save(path)
    result(1).save(path, replace=True)
    assert len(path.read_text()) < len(text)


def test_a_folder_that_cannot_be_written_to_is_said_in_the_words_of_the_library(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError) as caught:
        result(1).save(tmp_path / "file")
    assert "cannot write to" in str(caught.value)
    assert "--" not in str(caught.value)


def rows():
    """Three rows of a table: one failed, and one misses a number."""
    cells = [(7, "a", 0.5, True), (8, "b", None, None), (9, "c", 2.0, False)]
    branches = [
        Output(
            index=at, document=f"item {at + 1}", document_index=at, chunk=at, position=0, start=0,
            end=1, aspect=None, sample=0, output=None if at == 1 else text.upper(),
            kind=ErrorKind.TIMEOUT if at == 1 else None, message="slow" if at == 1 else None,
            attempts=1, usage=Usage(calls=1, input_tokens=None if at == 1 else 5), elapsed_s=0.5,
            columns={"id": number, "score": score, "ok": ok, "output": "mine"}, text_at=1,
            text_column="text", text=text,
        )
        for at, (number, text, score, ok) in enumerate(cells)
    ]  # fmt: skip
    return Result(
        run_id="abc", status=RunStatus.SUCCEEDED, aggregated=None, notes=[], branches=branches,
        reduce_errors=[], usage=Usage(calls=3), error=None, elapsed_s=2.0,
    )  # fmt: skip


COLUMNS = [
    "id", "text", "score", "ok", "column.output", "output", "error_kind", "error", "document", "pages",
    "headings", "chunk", "attempts", "input_tokens", "output_tokens", "cost_usd", "cached",
    "saved_usd",
]  # fmt: skip


def test_a_result_becomes_a_table_of_other_libraries_with_its_types(tmp_path):
    arrow = rows().to_arrow()
    assert arrow.schema.names == COLUMNS
    first, second, _ = arrow.to_pylist()
    assert (first["id"], first["text"], first["output"], first["input_tokens"]) == (7, "a", "A", 5)
    assert (first["column.output"], first["cost_usd"]) == ("mine", None)
    assert (second["error_kind"], second["error"], second["output"]) == ("timeout", "slow", None)
    rows().to_parquet(tmp_path / "new" / "out.parquet")
    assert parquet.read_table(tmp_path / "new" / "out.parquet").equals(arrow)
    polars = rows().to_polars()
    assert polars.equals(pl.from_arrow(arrow))
    assert polars.schema == pl.from_arrow(arrow).schema
    pandas = rows().to_pandas()
    assert list(pandas.columns) == COLUMNS
    types = {name: str(pandas[name].dtype) for name in COLUMNS}
    assert (types["id"], types["input_tokens"], types["score"]) == ("int64", "Int64", "float64")
    assert (types["ok"], types["text"]) == ("boolean", str(pd.Series(["a"]).dtype))
    assert pandas["input_tokens"].isna().tolist() == [False, True, False]
    assert pandas["output"].tolist()[::2] == ["A", "C"]
    assert pandas["pages"].isna().all()


def test_a_table_may_have_a_row_for_each_chunk():
    branches = [
        Output(
            index=at, document="d", document_index=0, chunk=0, position=0, start=0, end=1,
            aspect=aspect, sample=0, output=aspect.upper(), kind=None, message=None, attempts=1,
            usage=Usage(calls=1), elapsed_s=0.5,
        )
        for at, aspect in enumerate("ab")
    ]  # fmt: skip
    made = Result(
        run_id="abc", status=RunStatus.SUCCEEDED, aggregated=None, notes=[], branches=branches,
        reduce_errors=[], usage=Usage(calls=2), error=None, elapsed_s=2.0,
        layout=RowLayout(aspects=("a", "b")),
    )  # fmt: skip
    assert made.to_arrow().column("aspect").to_pylist() == ["a", "b"]
    [row] = made.to_arrow(wide=True).to_pylist()
    assert (row["a"], row["b"], row["attempts"]) == ("A", "B", 2)
    assert made.to_pandas(wide=True).shape[0] == made.to_polars(wide=True).height == 1


def test_an_empty_result_is_an_empty_table():
    empty = result(0, None)
    assert empty.to_arrow().num_rows == len(empty.to_pandas()) == empty.to_polars().height == 0
    assert empty.to_pandas().columns.tolist() == empty.to_arrow().schema.names
    assert "0 of 0 branches" in empty._repr_html_()


@pytest.mark.parametrize(
    ("library", "words"),
    [
        ("pandas", "pip install pandas"),
        ("polars", "pip install polars"),
        ("arrow", r"pip install 'fanout-llm\[tables\]'"),
    ],
)
def test_a_missing_library_is_named(monkeypatch, library, words):
    monkeypatch.setitem(sys.modules, "pyarrow" if library == "arrow" else library, None)
    with pytest.raises(InputError, match=words):
        getattr(rows(), f"to_{library}")()


def test_a_parquet_file_is_not_replaced_unless_that_is_asked_for(tmp_path):
    path = tmp_path / "out.parquet"
    path.write_text("mine")
    with pytest.raises(InputError, match="replace=True"):
        rows().to_parquet(path)
    assert path.read_text() == "mine"
    rows().to_parquet(path, replace=True)
    assert parquet.read_table(path).num_rows == 3
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["out.parquet"]


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.words, self.attributes = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.words.append(data)


def test_a_notebook_shows_the_first_rows_what_failed_and_what_it_cost():
    page = Tags(rows()._repr_html_())
    text = " ".join(page.words)
    assert page.tags.count("tr") == 4
    for part in (
        "id",
        "score",
        "2 of 3 branches",
        "1 failed (timeout 1)",
        "3 calls",
        "item 2: slow",
    ):
        assert part in text
    assert "attempts" not in page.words


def test_answers_that_were_cut_off_and_kept_are_shown():
    made = result(3)
    cut = [dataclasses.replace(one, is_cut=True) for one in made.branches[:1]]
    made = dataclasses.replace(made, branches=[*cut, *made.branches[1:]])
    assert "kept_truncated=1" in repr(made)
    assert "1 cut off and kept" in made._repr_html_()
    assert "kept_truncated" not in repr(result(3))
    assert "cut off" not in result(3)._repr_html_()


ROWS = [{"stars": at, "share": 0.5, "tag": "<b>"} for at in range(12)]


@pytest.mark.parametrize(
    ("aggregated", "tables", "words"),
    [
        (ROWS[:2], 1, ["stars", "share", "tag"]),
        (ROWS, 1, ["and 2 more rows"]),
        ([{f"c{at}": at for at in range(20)}], 1, ["and 8 more columns"]),
        ([{"a": 1}, {"b": None}], 1, ["a", "b", "None"]),
        ([{"sum:price": 2234568.2, "mean": 1 / 3}], 1, ["2234568.2", "0.333333"]),
        ({"x": ROWS[:1], "<i>y": ROWS[:1]}, 2, ["x", "<i>y"]),
        ({str(at): ROWS[:1] for at in range(8)}, 5, ["and 3 more groups"]),
        ({"winner": "a", "votes": {"a": 1}}, 0, ['"winner": "a"']),
        ([], 0, ["[]"]),
        ([1, 2], 0, ["1,"]),
        ("text", 0, ["text"]),
    ],
)
def test_a_notebook_shows_the_rows_of_an_aggregate_as_a_table(aggregated, tables, words):
    # The first table is that of the branches.
    page = Tags(dataclasses.replace(result(1), aggregated=aggregated)._repr_html_())
    assert page.tags.count("table") == 1 + tables
    assert page.tags.count("b") == 2
    text = " ".join(page.words)
    assert not [word for word in words if word not in text]


def test_a_notebook_shows_each_reduce_of_a_list_below_its_name():
    aggregated = {"counts": ROWS[:2], "sums": {"a<b": "all is well"}, "none": None}
    made = dataclasses.replace(result(1), aggregated=aggregated, has_reduces=True)
    page = Tags(made._repr_html_())
    assert page.tags.count("table") == 2, "that of the branches, and that of the rows"
    text = " ".join(page.words)
    for part in ("Aggregate counts", "stars", "Aggregate sums", "all is well", "Aggregate none"):
        assert part in text


def test_what_a_notebook_shows_is_escaped_and_bounded_and_loads_nothing():
    bad = "<script>alert(1)</script><img src=x onerror=y>" + "x" * 10_000
    wide = {f"{bad}{i}": [bad] for i in range(100)}
    branches = [
        Output(
            index=at, document=bad, document_index=at, chunk=at, position=0, start=0, end=1,
            aspect=None, sample=0, output=bad, kind=ErrorKind.TIMEOUT if at else None, message=bad,
            attempts=1, usage=Usage(calls=1, cost_usd=0.25), elapsed_s=0.5, columns=wide,
        )
        for at in range(50)
    ]  # fmt: skip
    page = Result(
        run_id=bad[:20], status=RunStatus.FAILED, aggregated={bad: bad}, notes=[bad] * 9,
        branches=branches, reduce_errors=[], usage=Usage(calls=50, cost_usd=0.25), error=bad,
        elapsed_s=2.0,
    )._repr_html_()  # fmt: skip
    assert len(page) < 200_000
    seen = Tags(page)
    allowed = {
        "div",
        "p",
        "b",
        "span",
        "pre",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "ul",
        "li",
    }
    assert set(seen.tags) <= {*allowed, "code"}
    assert {name for name, _ in seen.attributes} <= {"style", "class"}
    assert "40 more rows and 91 more columns" in page
    assert "$0.25" in page


@pytest.mark.parametrize(
    ("place", "names"),
    [
        ({}, ["document", "output"]),
        ({"pages": [2, 3]}, ["document", "pages", "output"]),
        ({"headings": "Terms > Payment"}, ["document", "headings", "output"]),
    ],
)
def test_a_notebook_shows_first_which_document_it_is_and_where_in_it(place, names):
    made = result(1, None)
    [branch] = made.branches
    kept = dataclasses.replace(branch, columns={}, **place)
    made = dataclasses.replace(made, branches=[kept])
    page = made._repr_html_()
    assert re.findall("<th [^>]*>(.*?)</th>", page) == names
