"""Tables and columns of other libraries as input: pandas, polars, pyarrow, datasets, and the like."""

from __future__ import annotations

import datetime as dt
import importlib
import subprocess
import sys
from itertools import islice

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from fanout.core.errors import InputError
from fanout.core.spec import make_spec
from fanout.inputs.documents import Items, from_strings
from fanout.inputs.intake import checked_documents
from tests.memory import peak_bytes

MAX = 1_000_000
DAY = dt.date(2024, 2, 29)
ROWS = [
    {"id": 7, "text": "a", "score": 0.5, "ok": True, "day": DAY, "tags": ["x", "y"]},
    {"id": 8, "text": None, "score": None, "ok": False, "day": None, "tags": []},
    {"id": 9, "text": "c", "score": 2.0, "ok": None, "day": DAY, "tags": None},
]
ARROW = pa.Table.from_pylist(ROWS)


class Stream:
    """Another library's table, of which only the Arrow interface is known."""

    def __init__(self, table):
        self._table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self._table.__arrow_c_stream__(requested_schema)


class Batch:
    def __init__(self, batch):
        self._batch = batch

    def __arrow_c_array__(self, requested_schema=None):
        return self._batch.__arrow_c_array__(requested_schema)


def batch(table):
    return table.combine_chunks().to_batches()[0]


def datasets():
    """Its import takes a second of CPU, and each process imports what it collects."""
    return importlib.import_module("datasets")


def data_set(table):
    return datasets().Dataset(table)


TABLES = {
    "rows": lambda: ROWS,
    "pandas": lambda: pd.DataFrame(ROWS),
    "pandas-arrow": lambda: ARROW.to_pandas(types_mapper=pd.ArrowDtype),
    "polars": lambda: pl.DataFrame(ROWS),
    "arrow": lambda: ARROW,
    "arrow-batch": lambda: batch(ARROW),
    "arrow-reader": ARROW.to_reader,
    "dataset": lambda: data_set(ARROW),
    "dataset-formatted": lambda: data_set(ARROW).with_format("numpy"),
    "dataset-stream": lambda: data_set(ARROW).to_iterable_dataset(),
    "duckdb": lambda: duckdb.from_arrow(ARROW),
    "stream": lambda: Stream(ARROW),
    "batch": lambda: Batch(batch(ARROW)),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("make", TABLES.values(), ids=TABLES)
def test_each_row_of_a_table_is_a_document_whose_columns_keep_types_and_order(make):
    first, second, third = from_strings(make(), max_bytes=MAX)
    assert (first.name, first.text, first.text_at) == ("item 1", "a", 1)
    day = "2024-02-29"
    expected = {"id": 7, "score": 0.5, "ok": True, "day": day, "tags": ["x", "y"]}
    assert first.columns == expected
    assert list(first.columns) == list(expected)
    assert [type(cell) for cell in first.columns.values()] == [int, float, bool, str, list]
    assert "the column 'text' is missing" in second.error
    assert second.columns == {"id": 8, "score": None, "ok": False, "day": None, "tags": []}
    assert (third.text, third.index) == ("c", 2)
    assert (third.columns["ok"], third.columns["tags"]) == (None, None)


COLUMNS = {
    "pandas": lambda: pd.Series(["a", None, "c"], index=[7, 8, 9]),
    "pandas-string": lambda: pd.Series(["a", pd.NA, "c"], dtype="string"),
    "pandas-index": lambda: pd.Index(["a", None, "c"]),
    "polars": lambda: pl.Series(["a", None, "c"]),
    "arrow": lambda: pa.array(["a", None, "c"]),
    "arrow-chunked": lambda: pa.chunked_array([["a"], [None, "c"]]),
    "arrow-dictionary": lambda: pa.array(["a", None, "c"]).dictionary_encode(),
    "stream": lambda: Stream(pa.chunked_array([["a"], [None, "c"]])),
    "batch": lambda: Batch(pa.array(["a", None, "c"])),
}


@pytest.mark.parametrize("make", COLUMNS.values(), ids=COLUMNS)
def test_each_text_of_a_column_is_a_document(make):
    first, second, third = from_strings(make(), max_bytes=MAX)
    assert (first.text, third.text, first.columns, first.text_at) == ("a", "c", {}, None)
    assert "it is missing" in second.error
    assert type(first.text) is str


def test_a_column_of_structs_has_rows():
    [document] = from_strings(pa.array([{"text": "a", "n": 1}]), max_bytes=MAX)
    assert (document.text, document.columns) == ("a", {"n": 1})


def test_a_mapping_has_the_name_of_each_document():
    texts = {"one": "a", 2: "b", "three": {"text": "c", "n": 1}, "four": None}
    one, two, three, four = from_strings(texts, max_bytes=MAX)
    assert [each.name for each in (one, two, three, four)] == ["one", "2", "three", "four"]
    assert (one.text, two.text, three.text, three.columns) == ("a", "b", "c", {"n": 1})
    assert "it is missing" in four.error


def test_levels_of_an_index_are_columns_where_they_have_a_name():
    frame = pd.DataFrame({"text": ["a", "b"], "n": [1, 2]})
    named = frame.set_index(pd.Index(["x", "y"], name="id"))
    assert [d.columns for d in from_strings(named, max_bytes=MAX)] == [
        {"id": "x", "n": 1},
        {"id": "y", "n": 2},
    ]
    assert next(from_strings(named, max_bytes=MAX)).text_at == 1
    levels = pd.MultiIndex.from_tuples([(1, 2), (3, 4)], names=["a", None])
    first, _ = from_strings(frame.set_index(levels), max_bytes=MAX)
    assert first.columns == {"a": 1, "n": 1}
    unnamed = frame.set_index(pd.Index(["x", "y"]))
    assert next(from_strings(unnamed, max_bytes=MAX)).columns == {"n": 1}
    assert list(unnamed.columns) == ["text", "n"]


def test_labels_that_are_no_strings_become_names():
    frame = pd.DataFrame([["a", 1]], columns=pd.MultiIndex.from_tuples([("text", ""), ("n", 2024)]))
    [document] = from_strings(frame, max_bytes=MAX)
    assert (document.text, document.columns) == ("a", {"n_2024": 1})
    [document] = from_strings(pd.DataFrame({"text": ["a"], 0: [1]}), max_bytes=MAX)
    assert document.columns == {"0": 1}


def test_the_only_column_of_a_table_is_its_text():
    [document] = from_strings(pl.DataFrame({"review": ["a"]}), max_bytes=MAX)
    assert (document.text, document.text_at, document.text_column) == ("a", 0, "review")
    [document] = from_strings(pl.DataFrame({"text": ["a"]}), max_bytes=MAX)
    assert document.text_column == ""


TWICE = pa.table([["a"], ["b"], ["c"]], names=["text", "n", "n"])


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (pd.DataFrame([["a", 1, 2]], columns=["text", "n", "n"]), "column 'n' more than once"),
        (pd.DataFrame([["a", 1, 2]], columns=["text", 1, "1"]), "column '1' more than once"),
        (
            pd.DataFrame({"text": ["a"]}, index=pd.Index([1], name="text")),
            "column 'text' more than once",
        ),
        (TWICE, "column 'n' more than once"),
        (batch(TWICE), "column 'n' more than once"),
        (TWICE.to_reader(), "column 'n' more than once"),
        (Stream(TWICE), "column 'n' more than once"),
        (
            pl.DataFrame({"id": [1], "body": ["a"]}),
            r"no column 'text' \(it has: id, body\); name one",
        ),
        (pl.LazyFrame({"text": ["a"]}), r"LazyFrame, which has no rows yet: .* collect\(\)"),
        ({"a": pd.DataFrame({"text": ["a"]})}, "dict whose 'a' is a DataFrame"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_at_once(table, words):
    with pytest.raises(InputError, match=words):
        from_strings(table, max_bytes=MAX)


def test_several_data_sets_are_refused_at_once():
    several = datasets().DatasetDict({"train": data_set(ARROW)})
    with pytest.raises(InputError, match="DatasetDict whose 'train' is a Dataset"):
        from_strings(several, max_bytes=MAX)


@pytest.mark.parametrize(
    "table",
    [pd.DataFrame(columns=["text", "n"]), pl.DataFrame({"text": []}), ARROW.slice(0, 0), {}],
)
def test_a_table_without_rows_is_empty(table):
    with pytest.raises(InputError, match="chunks is empty"):
        checked_documents(make_spec(model="fake", prompt="{input}"), table)


@pytest.mark.parametrize(
    ("make", "is_lasting"),
    [
        (TABLES["pandas"], True),
        (TABLES["arrow"], True),
        (TABLES["dataset"], True),
        (TABLES["dataset-stream"], False),
        (TABLES["arrow-reader"], False),
        (TABLES["stream"], False),
        (lambda: {"a": "b"}, True),
        (lambda: iter("ab"), False),
    ],
)
def test_what_can_be_read_once_is_read_once(make, is_lasting):
    items = Items(make(), text_column=None, max_bytes=MAX)
    assert items.is_lasting == is_lasting
    first = list(items.documents())
    if is_lasting:
        assert list(items.documents()) == first


def test_a_table_that_breaks_off_is_an_input_error():
    def batches():
        yield batch(ARROW)
        raise pa.ArrowInvalid("the file is cut\nat a line")

    reader = pa.RecordBatchReader.from_batches(ARROW.schema, batches())
    documents = from_strings(reader, max_bytes=MAX)
    with pytest.raises(
        InputError, match="RecordBatchReader cannot be read: ArrowInvalid: the file"
    ):
        list(documents)


def test_times_of_nanoseconds_become_text():
    times = pa.array([1], pa.timestamp("ns"))
    for table in (
        pa.table({"text": ["a"], "at": times}),
        pl.DataFrame({"text": ["a"], "at": times}),
    ):
        [document] = from_strings(table, max_bytes=MAX)
        assert isinstance(document.columns["at"], str)


@pytest.mark.parametrize(
    "make",
    [pa.Table.to_pandas, pl.from_arrow, pa.Table.combine_chunks, data_set, Stream],
    ids=["pandas", "polars", "arrow", "dataset", "stream"],
)
def test_rows_are_made_in_slices(make):
    """All rows at once would take 40 MB before the first of them is there."""
    count = 60_000
    rows = {"text": ["a"] * count, **{f"c{i}": list(range(count)) for i in range(4)}}
    documents = from_strings(make(pa.table(rows)), max_bytes=MAX)

    def read_some():
        assert sum(1 for _ in islice(documents, 2_500)) == 2_500

    assert peak_bytes(read_some) < 8_000_000


def test_none_of_these_libraries_is_loaded_unless_it_is_given():
    code = """
import sys
from fanout.inputs.documents import from_strings
list(from_strings(["a", {"text": "b"}], max_bytes=100))
list(from_strings({"a": "b"}, max_bytes=100))
list(from_strings(iter(["a"]), max_bytes=100))
import %s as given
table = %s
assert next(from_strings(table, max_bytes=100)).text == "a"
print(*{name.partition(".")[0] for name in sys.modules})
"""
    others = {"pandas", "polars", "pyarrow", "datasets", "duckdb", "numpy"}
    for library, table, allowed in (
        ("json", "given.loads('[\"a\"]')", set()),
        ("polars", "given.DataFrame({'text': ['a'], 'n': [1]})", {"polars"}),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code % (library, table)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert set(done.stdout.split()) & others <= allowed


def test_a_stream_without_pyarrow_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install 'fanout-llm\[tables\]'"):
        from_strings(Stream(ARROW), max_bytes=MAX)
