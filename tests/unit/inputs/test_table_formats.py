"""Tables of every format: what each library writes is read alike, and what is wrong costs itself."""

from __future__ import annotations

import bz2
import datetime as dt
import decimal
import gzip
import http.server
import importlib
import io
import json
import lzma
import random
import re
import signal
import sqlite3
import struct
import sys
import threading
import zipfile
from contextlib import closing, suppress

import fsspec
import openpyxl
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from pyarrow import feather
from pyarrow import parquet as pq

from fanout.cli.delivery import spec_record
from fanout.core.errors import InputError
from fanout.core.spec import make_spec
from fanout.inputs.documents import FileSource
from fanout.inputs.documents import parquet_rows as parquet_module
from fanout.inputs.documents import remote as remote_module
from fanout.inputs.documents import sqlite_rows as sqlite_module
from fanout.inputs.documents import xlsx_archive as xlsx_module
from fanout.inputs.documents.remote import one_line
from tests.made_documents import docx, pdf, zipped

ROWS = [
    {"id": i, "stars": i / 2 if i % 3 else None, "text": f"größe {i}", "tag": "a,b" if i else None}
    for i in range(5)
]
COLUMNS = [{name: row[name] for name in ("id", "stars", "tag")} for row in ROWS]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def source(*inputs, **options):
    return FileSource(inputs, **{"max_bytes": 1_000_000, **options})


def read(*inputs, **options):
    return list(source(*inputs, **options).documents())


def table():
    return pa.Table.from_pylist(ROWS)


def to_sqlite(path, rows=ROWS, name="reviews"):
    with closing(sqlite3.connect(path)) as database:
        pd.DataFrame(rows).to_sql(name, database, if_exists="replace", index=False)
        database.commit()


def to_stream(path, data=None):
    data = table() if data is None else data
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, data.schema) as writer:
        writer.write_table(data, max_chunksize=2)


def to_file(path):
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table().schema) as writer:
        writer.write_table(table(), max_chunksize=2)


def to_xlsx(path, *sheets):
    book = openpyxl.Workbook()
    book.remove(book.active)
    for title, rows in sheets:
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
    book.save(path)


def to_dataset(path, rows=ROWS):
    from datasets import Dataset

    Dataset.from_list(rows).save_to_disk(str(path), num_shards=2)


WRITERS = {
    "pyarrow.parquet": lambda path: pq.write_table(table(), path),
    "groups.parquet": lambda path: pq.write_table(table(), path, row_group_size=2),
    "pandas.parquet": lambda path: pd.DataFrame(ROWS).to_parquet(path),
    "polars.parquet": lambda path: pl.DataFrame(ROWS).write_parquet(path),
    "pyarrow.feather": lambda path: feather.write_feather(table(), path),
    "pandas.feather": lambda path: pd.DataFrame(ROWS).to_feather(path),
    "polars.arrow": lambda path: pl.DataFrame(ROWS).write_ipc(path),
    "polars.ipc": lambda path: pl.DataFrame(ROWS).write_ipc_stream(path),
    "stream.arrow": to_stream,
    "file.arrow": to_file,
    "pandas.xlsx": lambda path: pd.DataFrame(ROWS).to_excel(path, index=False),
    "shop.sqlite": to_sqlite,
    "shop.db": to_sqlite,
    "dataset": to_dataset,
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_a_table_of_each_writer_has_the_same_rows(here, name):
    WRITERS[name](here / name)
    for inputs in ([name], ["*"], ["."]):
        documents = read(*inputs)
        assert [one.error for one in documents] == [None] * 5
        assert [one.text for one in documents] == [row["text"] for row in ROWS]
        assert [one.columns for one in documents] == COLUMNS
        assert [list(one.columns) for one in documents] == [["id", "stars", "tag"]] * 5
        assert {one.text_at for one in documents} == {2}
        first = 2 if name.endswith(".xlsx") else 1
        assert [one.name for one in documents] == [f"{name}:{first + i}" for i in range(5)]
    found = source(name)
    assert list(found.documents()) == list(found.documents())
    assert found.columns(frozenset({"tag", "x"})) == {"tag"}


@pytest.mark.parametrize("name", WRITERS)
def test_a_column_that_is_not_there_is_refused_at_once_with_those_that_are(here, name):
    WRITERS[name](here / name)
    with pytest.raises(InputError, match=r"'body' \(it has: id, stars, text, tag\)"):
        source(name, text_column="body", sheet="1")
    [first, *_] = read(name, text_column="tag")
    assert first.error == "the column 'tag' is missing (None)"
    [first, *_] = read(name, text_column="id")
    assert first.error == "the column 'id' must be a string, not int"
    assert first.columns["text"] == "größe 0"


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow", "t.xlsx", "t.db"])
def test_a_table_without_rows_is_named(here, name):
    empty = pa.table({"text": pa.array([], pa.string())})
    pq.write_table(empty, here / "t.parquet")
    to_stream(here / "t.arrow", empty)
    to_xlsx(here / "t.xlsx", ("s", [["text"]]))
    to_sqlite(here / "t.db", {"text": []})
    found = source(name)
    assert list(found.documents()) == []
    assert found.why_empty() == f"{name} has a header and no row below it"


@pytest.mark.parametrize(
    "name", ["pyarrow.parquet", "stream.arrow", "file.arrow", "pandas.xlsx", "shop.db"]
)
def test_damage_anywhere_ends_in_documents_or_one_line(here, name):
    """Damage that is seeded: no other error, and no end of the process."""
    WRITERS[name](here / name)
    whole, dice = (here / name).read_bytes(), random.Random(name)
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(dice.choice([1, 3, 20])):
            data[dice.randrange(len(data))] = dice.randrange(256)
        (here / f"x{name}").write_bytes(data)
        try:
            shown = [one.error or "" for one in read(f"x{name}")]
        except InputError as error:
            shown = [str(error)]
        assert not any("\n" in line for line in shown)


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow", "t.xlsx", "t.db", "t.csv"])
def test_the_only_column_is_the_text_and_is_remembered_by_its_name(here, name):
    to_stream(here / "t.arrow", pa.table({"body": ["a"]}))
    pq.write_table(pa.table({"body": ["a"]}), here / "t.parquet")
    to_xlsx(here / "t.xlsx", ("s", [["body"], ["a"]]))
    to_sqlite(here / "t.db", [{"body": "a"}])
    (here / "t.csv").write_text("body\na\n")
    [only] = read(name, sheet="s")
    assert (only.text, only.columns, only.text_at, only.text_column) == ("a", {}, 0, "body")


def test_types_that_json_does_not_have_become_text_and_nested_ones_stay(here):
    stamps = pa.array([1, None, 3_000_000_000], pa.timestamp("ns"))
    some = pa.table({
        "text": pa.array(["a", None, "c"], pa.large_string()).dictionary_encode(),
        "day": pa.array([dt.date(2024, 1, 2), None, None]),
        "at": pa.array([dt.datetime(2024, 1, 2, 3, tzinfo=dt.UTC), None, None]),
        "ns": stamps,
        "us": pa.array([5_000, None, None], pa.timestamp("ns")),
        "price": pa.array([decimal.Decimal("1.50"), None, None]),
        "raw": pa.array([b"x", b"\xff", None]),
        "map": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int64())),
        "nest": pa.array([{"a": [1, 2.5], "t": dt.date(2024, 1, 1)}, None, {"a": None, "t": None}]),
        "big": pa.array([2**64 - 1, 1, None], pa.uint64()),
        "nan": pa.array([float("nan"), 1.5, None]),
        "ok": pa.array([True, None, False]),
    })  # fmt: skip
    pq.write_table(some, here / "n.parquet", store_schema=True)
    to_stream(here / "n.arrow", some)
    for name in ("n.parquet", "n.arrow"):
        first, second, third = read(name)
        assert first.columns == {
            "day": "2024-01-02", "at": "2024-01-02 03:00:00+00:00",
            "ns": "1970-01-01 00:00:00.000000001", "us": "1970-01-01 00:00:00.000005",
            "price": "1.50", "raw": "x", "map": {"k": 1},
            "nest": {"a": [1, 2.5], "t": "2024-01-01"}, "big": "18446744073709551615",
            "nan": None, "ok": True,
        }  # fmt: skip
        assert second.columns["raw"] == "/w=="
        assert (second.columns["big"], second.columns["nan"]) == (1, 1.5)
        assert second.error == "the column 'text' is missing (None)"
        assert third.columns["nest"] == {"a": None, "t": None}
        assert third.columns["map"] == {}


@pytest.mark.parametrize(
    "kind",
    [
        "string",
        "large_string",
        "string_view",
        "binary",
        "large_binary",
        "binary_view",
        "dictionary",
    ],
)
def test_a_text_may_have_any_type_of_strings_and_other_columns_any_type_of_lists(here, kind):
    texts = pa.array(["a", "b"])
    texts = texts.dictionary_encode() if kind == "dictionary" else texts.cast(getattr(pa, kind)())
    lists = pa.array([[1], [2, 3]])
    views = pa.array([[1], [2, 3]], pa.list_view(pa.int64()))
    to_stream(here / "t.arrow", pa.table({"text": texts, "l": lists, "v": views}))
    documents = read("t.arrow")
    assert [one.text for one in documents] == ["a", "b"]
    assert [one.columns for one in documents] == [{"l": [1], "v": [1]}, {"l": [2, 3], "v": [2, 3]}]


def test_a_row_with_invalid_text_costs_itself(here):
    bad = pa.array([b"a", b"\xff\xfe!", b"c"]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": bad, "n": [1, 2, 3]}), here / "t.parquet")
    with closing(sqlite3.connect(here / "t.db")) as database:
        database.execute("CREATE TABLE t (text TEXT, n INTEGER)")
        for n, hexed in enumerate(["61", "fffe21", "63"], 1):
            database.execute(f"INSERT INTO t VALUES (CAST(x'{hexed}' AS TEXT), {n})")
        database.commit()
    for name in ("t.parquet", "t.db"):
        documents = read(name)
        assert [one.text for one in documents] == ["a", "", "c"]
        assert documents[1].name == f"{name}:2"
        assert documents[1].error
        assert documents[2].columns == {"n": 3}


DAMAGE = {"cut": lambda data: data[: len(data) // 2], "text": lambda _: b"no table at all",
          "empty": lambda _: b""}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", [name for name in WRITERS if name != "dataset"])
def test_a_damaged_file_is_one_clear_error_and_the_rest_goes_on(here, name, damage):
    WRITERS[name](here / name)
    (here / name).write_bytes(DAMAGE[damage]((here / name).read_bytes()))
    (here / "after.txt").write_text("after")
    documents = read(name, "after.txt")
    assert [one.text for one in documents if one.error is None][-1] == "after"
    faults = [one for one in documents if one.error is not None]
    assert len(faults) == 1
    assert faults[0].name.startswith(name)
    assert "\n" not in faults[0].error
    assert "Traceback" not in faults[0].error


def test_a_damaged_row_group_costs_its_rows_and_names_them(here):
    texts = [f"{i:06d}" * 50 for i in range(300)]
    pq.write_table(pa.table({"text": texts}), here / "t.parquet", row_group_size=100,
                   compression="none", use_dictionary=False,
                   write_page_checksum=True)  # fmt: skip
    data = bytearray((here / "t.parquet").read_bytes())
    at = data.find(b"000150" * 50)
    data[at : at + 4] = b"\0\0\0\0"
    (here / "t.parquet").write_bytes(data)
    documents = read("t.parquet")
    [fault] = [one for one in documents if one.error is not None]
    assert fault.name == "t.parquet:101"
    assert fault.error.startswith("rows 101 to 200 cannot be read: ")
    assert [one.text[:6] for one in documents if one.error is None] == [
        f"{i:06d}" for i in range(300) if i not in range(100, 200)
    ]


TWICE = "sqlite:///t.db?query=SELECT 'a' AS text, 1 AS n, 2 AS n"


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow", "t.xlsx", TWICE])
def test_a_column_that_is_there_twice_is_refused(here, name):
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array([1]), pa.array([2])],
                                 names=["text", "n", "n"])  # fmt: skip
    pq.write_table(twice, here / "t.parquet")
    to_stream(here / "t.arrow", twice)
    to_xlsx(here / "t.xlsx", ("s", [["text", "n", "n"], ["a", 1, 2]]))
    to_sqlite(here / "t.db")
    with pytest.raises(InputError, match="the column 'n' more than once, at the positions"):
        source(name)


# Workbooks.


@pytest.mark.parametrize(
    ("shown_as", "hours", "text"),
    [
        ("mm-dd-yy", 0, "2024-05-06"),
        ("dd.mm.yyyy", 0, "2024-05-06"),
        ('[$-hs-HS]d. mmmm "des Jahres" yyyy\\s', 0, "2024-05-06"),
        # What is shown, or not zero, is a part of it.
        ("dd.mm.yyyy", 8, "2024-05-06 08:00:00"),
        ("yyyy-mm-dd h:mm:ss", 0, "2024-05-06 00:00:00"),
        ("m/d/yy HH:mm", 0, "2024-05-06 00:00:00"),
    ],
)
def test_a_date_of_a_workbook_without_a_time_of_day_is_a_date(here, shown_as, hours, text):
    book = openpyxl.Workbook()
    sheet = book.worksheets[0]
    sheet.append(["text", "day"])
    sheet.append(["a", dt.datetime.combine(dt.date(2024, 5, 6), dt.time(hours))])
    sheet["B2"].number_format = shown_as
    book.save(here / "b.xlsx")
    assert read("b.xlsx")[0].columns == {"day": text}


def test_a_sheet_is_chosen_by_its_name_or_number(here):
    rows = {name: [["text"], [f"of {name}"]] for name in ("One", "Two", "2")}
    to_xlsx(here / "b.xlsx", *rows.items())
    for sheet, text in ((None, "of One"), ("Two", "of Two"), ("1", "of One"), ("2", "of 2")):
        assert [one.text for one in read("b.xlsx", sheet=sheet)] == [text]
    for sheet in ("Three", "0", "4"):
        with pytest.raises(InputError, match=rf"no sheet '{sheet}' \(it has: One, Two, 2\)"):
            source("b.xlsx", sheet=sheet)


def test_the_cells_of_a_workbook_are_read_as_they_are_shown(here):
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append([])
    sheet.append(["text", "day", None, "n", " total "])
    sheet.append(["merged", dt.date(2024, 5, 6), "side", 3.0, "=D3*2"])
    sheet.append([])
    sheet.append([None, None, None, 4])
    sheet.append(["#N/A", True, None, "#DIV/0!"])
    sheet.merge_cells("A3:A5")
    book.save(here / "b.xlsx")
    first, second, third = read("b.xlsx")
    assert first.name == "b.xlsx:3"
    # openpyxl stores no value for a formula.
    assert first.columns == {"day": "2024-05-06", "n": 3, "total": None, "C": "side"}
    assert (second.name, second.error) == ("b.xlsx:5", "the column 'text' is missing (None)")
    assert third.error == "the column 'text' has the error #N/A"
    assert third.columns == {"day": True, "n": "#DIV/0!", "total": None}


def test_a_formula_has_the_value_that_was_stored_with_it(here):
    to_xlsx(here / "b.xlsx", ("s", [["text", "n"], ["a", 77]]))
    with zipfile.ZipFile(here / "b.xlsx") as old, zipfile.ZipFile(here / "c.xlsx", "w") as new:
        for part in old.namelist():
            data = old.read(part).replace(b"<v>77</v>", b"<f>SUM(1,76)</f><v>77</v>")
            new.writestr(part, data)
    assert read("c.xlsx")[0].columns == {"n": 77}


def test_a_workbook_whose_header_has_no_text_is_a_document_unless_a_sheet_is_named(here):
    to_xlsx(here / "b.xlsx", ("Bill", [["Name", "Amount"], ["Ann", 5]]))
    notices = []
    [only] = read("b.xlsx", notify=notices.append)
    assert (only.name, only.text_at, only.error) == ("b.xlsx", None, None)
    assert "Ann" in only.text
    [notice] = notices
    assert notice.text == (
        "reading b.xlsx as one document: the header of the sheet 'Bill' has no column 'text' "
        "(it has: Name, Amount)"
    )
    assert [one.text for one in read("b.xlsx", text_column="Name")] == ["Ann"]
    with pytest.raises(InputError, match="sheet 'Bill', line 1: there is no column 'text'"):
        source("b.xlsx", sheet="Bill")


def test_an_empty_sheet_is_one_error_that_names_the_others(here):
    to_xlsx(here / "b.xlsx", ("Empty", []), ("Data", [["text"], ["a"]]))
    [only] = read("b.xlsx", sheet="Empty")
    assert only.error == (
        "the sheet 'Empty' is empty; a header row is needed (the other sheets are: Data; see sheet)"
    )


def sheet_xml(rows):
    space = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    return f'<worksheet xmlns="{space}"><sheetData>{rows}</sheetData></worksheet>'.encode()


def with_sheet(path, xml):
    to_xlsx("plain.xlsx", ("s", [["text"], ["a"]]))
    with (
        zipfile.ZipFile("plain.xlsx") as old,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for part in old.namelist():
            new.writestr(part, xml if part.startswith("xl/worksheets/") else old.read(part))


HEAD = '<row r="1"><c r="A1" t="inlineStr"><is><t>text</t></is></c></row>'
ROW = '<row r="{0}"><c r="A{0}" t="inlineStr"><is><t>a</t></is></c></row>'


def test_bombs_cost_their_workbook_and_little_memory_or_time(here, monkeypatch):
    with_sheet(here / "sheet.xlsx", sheet_xml(HEAD + ROW.format(2) + " " * 60_000_000))
    with_sheet(here / "rows.xlsx", sheet_xml(HEAD + ROW.format(2) + ROW.format(10**12)))
    monkeypatch.setattr(xlsx_module, "_MOST_ROW_BYTES", 100_000)
    long = HEAD + ROW.format(2) + f'<row r="3"><c r="A3" t="str"><v>{"x" * 400_000}</v></c></row>'
    with_sheet(here / "row.xlsx", sheet_xml(long))
    laughs = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 12))
    doctype = f'<!DOCTYPE x [<!ENTITY l0 "{"ha" * 1_000}">{laughs}]>'.encode()
    with_sheet(here / "laughs.xlsx", doctype + sheet_xml(HEAD + "<row><c><v>&l11;</v></c></row>"))
    monkeypatch.setattr(xlsx_module, "_MOST_SHEET_BYTES", 20_000_000)
    with_sheet(here / "large.xlsx", sheet_xml(HEAD + " " * 21_000_000))
    for name, words in (
        ("sheet", "is a bomb"), ("rows", "row 1,000,000,000,000"), ("row", "a row of more than"),
        ("laughs", "is no whole Excel workbook"), ("large", "too large"),
    ):  # fmt: skip
        faults = [one.error for one in read(f"{name}.xlsx") if one.error is not None]
        assert len(faults) == 1
        assert words in faults[0]


STRINGS = "xl/sharedStrings.xml"
SHARED = "".join(f'<row r="{at}"><c r="A{at}" t="s"><v>{at - 1}</v></c></row>' for at in (1, 2))
OVERRIDE = (
    '<Override PartName="/{0}" ContentType="application/vnd.openxmlformats-officedocument.'
    'spreadsheetml.sharedStrings+xml"/></Types>'
)


def with_strings(path, part, strings, sheet="xl/worksheets/sheet1.xml"):
    """Write a workbook whose shared strings, and whose sheet, are in parts of any name."""
    with_sheet("shared.xlsx", sheet_xml(SHARED))
    with (
        zipfile.ZipFile("shared.xlsx") as old,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            text = old.read(name).decode().replace("/xl/worksheets/sheet1.xml", f"/{sheet}")
            if name == "[Content_Types].xml":
                text = text.replace("</Types>", OVERRIDE.format(part))
            new.writestr(sheet if name.endswith("/sheet1.xml") else name, text)
        new.writestr(part, strings)


def strings_xml(texts, space=0):
    head = '<sst xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main">'
    cells = "".join(f"<si><t>{text}</t></si>" for text in texts)
    return f"{head}{cells}{' ' * space}</sst>"


@pytest.mark.parametrize("part", ["xl/worksheets/s.xml", "xl/sharedStrings.xml", "strings.bin"])
def test_parts_that_are_read_as_a_whole_have_a_limit_under_any_name(here, part, monkeypatch):
    strings = strings_xml(["text", "a"], space=200_000)
    with_strings(here / "s.xlsx", part, strings)
    with_strings(here / "m.xlsx", part, strings, sheet="other/place.xml")
    assert [one.text for one in read("s.xlsx", "m.xlsx")] == ["a", "a"]
    monkeypatch.setattr(xlsx_module, "_MOST_WHOLE_BYTES", 200_000)
    for one in read("s.xlsx", "m.xlsx"):
        assert f"its part {part} is too large" in one.error


def test_a_sheet_of_any_name_is_read_in_parts(here, monkeypatch):
    rows = "".join(ROW.format(at) for at in range(2, 5_000))
    with_sheet(here / "named.xlsx", sheet_xml(HEAD + rows))
    monkeypatch.setattr(xlsx_module, "_MOST_WHOLE_BYTES", 50_000)
    assert len(read("named.xlsx")) == 4_998


def test_a_workbook_has_a_deadline_for_its_loading_and_for_each_row(here, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("fanout.inputs.documents.deadlines.time.monotonic", lambda: clock[0])
    real = xlsx_module.Part.read
    cost_s = 0.0

    def slow(part, size=-1, /):
        clock[0] += cost_s
        return real(part, size)

    monkeypatch.setattr(xlsx_module.Part, "read", slow)
    blank = "".join(f'<row r="{at}"/>' for at in range(3, 100_000))
    with_sheet(here / "rows.xlsx", sheet_xml(HEAD + ROW.format(2) + blank + ROW.format(100_000)))
    with_strings(here / "load.xlsx", STRINGS, strings_xml(["text", "a"], space=2_000_000))
    documents = source("rows.xlsx", parse_timeout_s=5).documents()
    assert next(documents).text == "a"
    # The pause of the consumer does not count.
    clock[0] += 1_000
    assert next(documents).text == "a"
    cost_s = 0.1
    limit = r"took longer than 5 s \(parse_timeout_s\)"
    [_, last] = read("rows.xlsx", parse_timeout_s=5)
    assert re.search(limit, last.error)
    [only] = read("load.xlsx", parse_timeout_s=5)
    assert re.search(limit, only.error)


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ('<c r="A3" t="s"><v>999</v></c>', "a shared text that the workbook does not have"),
        ('<c r="A3" t="s"><v>x</v></c>', "a place, a type or a value"),
        ('<c r="??" t="n"><v>1</v></c>', "a place, a type or a value"),
        ('<c r="A3" t="n"><v>1,5</v></c>', "a place, a type or a value"),
    ],
)
def test_a_cell_that_cannot_be_read_costs_its_row(here, cell, words):
    wrong = f'<row r="3">{cell}</row>'
    with_sheet(here / "rows.xlsx", sheet_xml(HEAD + ROW.format(2) + wrong + ROW.format(4)))
    first, second, third = read("rows.xlsx")
    assert (first.text, third.text, third.name) == ("a", "a", "rows.xlsx:4")
    assert second.name == "rows.xlsx:3"
    assert words in second.error
    with_sheet(here / "head.xlsx", sheet_xml(wrong + ROW.format(4)))
    [only] = read("head.xlsx")
    assert only.error.startswith("the header, row 3: a cell")


def test_an_encrypted_workbook_is_named(here):
    (here / "b.xlsx").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600)
    [only] = read("b.xlsx")
    assert only.error.startswith("it is encrypted with a password")


# Databases.


def test_a_url_names_a_table_or_a_query(here):
    to_sqlite(here / "s.db")
    to_sqlite(here / "s.db", [{"text": "x"}], "other one")
    assert [one.name for one in read("sqlite:///s.db?table=reviews")][:2] == [
        "s.db#reviews:1", "s.db#reviews:2",
    ]  # fmt: skip
    for url in (
        "sqlite:///s.db?query=SELECT text, id FROM reviews WHERE text LIKE '%größe 3%' AND id > 0",
        "sqlite:///s.db?query=SELECT+text,+id+FROM+reviews+WHERE+id%3D3",
        f"sqlite:///{here}/s.db?query=SELECT text, id FROM reviews WHERE id IN (3)",
        f"sqlite://{here}/s.db?query=SELECT text, id FROM reviews WHERE id=3",
    ):
        [only] = read(url)
        assert (only.text, only.columns) == ("größe 3", {"id": 3})
    assert [one.text for one in read("sqlite:///s.db?table=other%20one")] == ["x"]
    assert [one.text for one in read("sqlite:///s.db?table=other one", base=here)] == ["x"]
    # Two of one file are told apart.
    both = source("sqlite:///s.db?query=SELECT 'a' AS text", "sqlite:///s.db?query=SELECT 1 AS n, "
                  "'b' AS text")  # fmt: skip
    assert [(one.text, one.columns) for one in both.documents()] == [("a", {}), ("b", {"n": 1})]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s.db", r"it has the tables a, b: name one, as sqlite:///s.db\?table=a"),
        ("sqlite:///s.db", "it has the tables a, b"),
        ("sqlite:///s.db?table=c", r"there is no table 'c' \(it has: a, b\)"),
        ("sqlite:///s.db?tabel=a", r"the parameter 'tabel': a SQLite URL takes table=TABLE or"),
        ("sqlite:///s.db?query=", "the parameter 'query'"),
        ("sqlite:///s.db?query=SELEC 1", 'the query: SQLite: near "SELEC": syntax error'),
        ("sqlite:///s.db?query=SELECT nope FROM a", "no such column: nope"),
        ("sqlite:///s.db?query=DELETE FROM a", "only SELECT is allowed"),
        ("sqlite:///s.db?query=ATTACH '/x.db' AS x", "only SELECT is allowed"),
        ("sqlite:///s.db?query=PRAGMA journal_mode=WAL", "only SELECT is allowed"),
        ("sqlite:///gone.db?table=a", "there is no such file"),
        ("sqlite://s.db", "is not a SQLite URL"),
        ("sqlite:s.db?table=a", "is not a SQLite URL"),
    ],
)
def test_a_database_url_that_is_wrong_says_so(here, url, words):
    for name in ("a", "b"):
        to_sqlite(here / "s.db", name=name)
    with pytest.raises(InputError, match=words):
        source(url)


ENDLESS = (
    "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n > 0) "
    "SELECT {0} AS text FROM t{1}"
)


def test_a_view_or_a_query_that_never_comes_to_a_row_costs_itself(here):
    with closing(sqlite3.connect(here / "v.db")) as database:
        database.execute("CREATE VIEW v AS " + ENDLESS.format("count(*)", ""))
        database.execute("CREATE VIEW some AS " + ENDLESS.format("n || ''", " WHERE n < 4"))
    (here / "after.txt").write_text("after")
    limit = "reading it took longer than 0.1 s (parse_timeout_s)"
    first, second = read("sqlite:///v.db?table=v", "after.txt", parse_timeout_s=0.1)
    assert (first.error, second.text) == (limit, "after")
    # Its three rows are there at once, but on a busy machine not within a tenth of a second.
    *rows, last = read("sqlite:///v.db?table=some", parse_timeout_s=2)
    # Python's sqlite3 looks one row ahead, and loses a row if it finds none.
    assert [one.text for one in rows] == ["1", "2"]
    assert last.error == f"cannot be read after row 2: {limit.replace('0.1', '2')}"
    with pytest.raises(InputError, match="the query: reading it took longer than"):
        source("sqlite:///v.db?query=" + ENDLESS.format("count(*)", ""), parse_timeout_s=0.1)


def test_ctrl_c_ends_a_query_that_never_comes_to_a_row(here):
    to_sqlite(here / "s.db")
    signals = threading.Timer(0.1, signal.raise_signal, [signal.SIGINT])
    signals.start()
    with pytest.raises(KeyboardInterrupt):
        source("sqlite:///s.db?query=" + ENDLESS.format("count(*)", ""), parse_timeout_s=30)
    signals.join()


def test_the_pauses_of_a_consumer_are_not_those_of_a_database(here, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("fanout.inputs.documents.deadlines.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(sqlite_module, "_STEPS", 1)
    to_sqlite(here / "s.db")
    texts = []
    for document in source("s.db", parse_timeout_s=5).documents():
        texts.append(document.text)
        clock[0] += 1_000
    assert texts == [row["text"] for row in ROWS]


def test_views_are_read_only_of_a_database_that_is_named(here):
    (here / "in").mkdir()
    with closing(sqlite3.connect(here / "in" / "v.db")) as database:
        database.execute("CREATE VIEW v AS SELECT 'a' AS text")
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.put(str(here / "in" / "v.db"), "/in/v.db")
    for named in ("in/v.db", "sqlite:///in/v.db", "memory://in/v.db"):
        assert [one.text for one in read(named)] == ["a"]
    for found in ("in", "in/*.db", "**/*.db", "memory://in", "memory://in/*.db"):
        [only] = read(found)
        assert only.error.startswith("the database has no table; its views")


def test_a_locked_database_is_one_error_after_a_wait(here, monkeypatch):
    monkeypatch.setattr(sqlite_module, "_LOCKED_S", 0.05)
    to_sqlite(here / "s.db")
    (here / "after.txt").write_text("after")
    with closing(sqlite3.connect(here / "s.db")) as database:
        database.execute("BEGIN EXCLUSIVE")
        first, second = read("s.db", "after.txt")
    assert first.error.startswith("another program has locked the database")
    assert second.text == "after"


def test_a_database_that_another_program_writes_in_wal_mode_is_read(here):
    to_sqlite(here / "s.db")
    with closing(sqlite3.connect(here / "s.db")) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("INSERT INTO reviews (text) VALUES ('new')")
        assert len(read("s.db")) == 5
        database.commit()
        assert len(read("s.db")) == 6
    assert not (here / "s.db-wal").exists()


def test_the_rows_of_a_database_come_in_their_order_for_any_thread(here):
    with closing(sqlite3.connect(here / "s.db")) as database:
        database.execute("CREATE TABLE t (text TEXT)")
        database.execute("CREATE INDEX i ON t (text)")
        database.executemany("INSERT INTO t VALUES (?)", [(text,) for text in "cab"])
        database.commit()
    documents = source("s.db").documents()
    found = [next(documents).text]
    thread = threading.Thread(target=lambda: found.extend(one.text for one in documents))
    thread.start()
    thread.join()
    assert found == ["c", "a", "b"]


# Datasets.


def test_a_folder_with_splits_names_them(here):
    for name in ("train", "test"):
        to_dataset(here / "d" / name)
    (here / "d" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    with pytest.raises(InputError, match="has the splits train, test: name one or more"):
        source("d")
    assert [one.name for one in read("d/train", "d/test")][4:6] == ["d/train:5", "d/test:1"]
    (here / "d" / "train" / "state.json").write_text("{")
    assert [bool(one.error) for one in read("d/train", "d/test")] == [True] + [False] * 5
    (here / "d" / "dataset_dict.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="has the splits of a DatasetDict: name one or more"):
        source("d")


@pytest.mark.parametrize(
    "state",
    [
        "[" * 100_000, "[1]", "{}", '{"_data_files": null}', '{"_data_files": ["x"]}',
        r'{"_data_files": [{"filename": "a\u0000"}]}', r'{"_data_files": [{"filename": "\ud800"}]}',
    ],
)  # fmt: skip
def test_a_dataset_whose_state_is_damaged_is_told_with_a_reason(here, state):
    to_dataset(here / "d")
    (here / "d" / "state.json").write_text(state)
    (document,) = read("d")
    assert "is no whole folder of a dataset: state.json: " in document.error


@pytest.mark.parametrize("kind", ["list", "tensor"])
def test_a_list_of_a_fixed_size_that_is_too_short_ends_no_process(here, kind):
    pairs = pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.int8(), 2))
    if kind == "tensor":
        pairs = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.int8(), [2]), pairs)
    rows = pa.RecordBatch.from_arrays([pa.array(["a", "b", "c"]), pairs], ["text", "pair"])
    with pa.ipc.new_file(str(here / "a.arrow"), rows.schema) as writer:
        writer.write_batch(rows)
    # The lengths and the numbers of nulls of the text, the list and its values.
    whole, short = (struct.pack("<6q", 3, 0, 3, 0, count, 0) for count in (6, 4))
    data = (here / "a.arrow").read_bytes()
    assert data.count(whole) == 1
    (here / "a.arrow").write_bytes(data.replace(whole, short))
    documents = read("a.arrow")
    assert [one.name for one in documents] == ["a.arrow:1", "a.arrow:2", "a.arrow:3"]
    assert all("Values length (4) is less than the length" in one.error for one in documents)


def test_a_decimal_whose_scale_is_damaged_costs_the_rows_and_not_the_run(here):
    number = pa.py_buffer((1).to_bytes(16, "little"))
    price = pa.Array.from_buffers(pa.decimal128(5, 10**9), 1, [None, number])
    rows = pa.table({"text": ["a"], "price": price})
    with pa.ipc.new_file(str(here / "a.arrow"), rows.schema) as writer:
        writer.write_table(rows)
    assert [one.error for one in read("a.arrow")] == [
        "the row cannot be used: [<class 'decimal.ConversionSyntax'>]"
    ]


# Places.


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "dataset"])
def test_every_kind_of_file_is_read_from_a_url_also_by_pattern_and_folder(here, name):
    WRITERS[name](here / name)
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pipe(f"/shop/in/{name}", (here / name).read_bytes())
    store.pipe("/shop/in/.hidden.csv", b"text\nx\n")
    expected = [(one.text, one.columns, one.text_at) for one in read(name)]
    suffix = name.rpartition(".")[2]
    for url in (f"memory://shop/in/{name}", f"memory://shop/**/*.{suffix}", "memory://shop/"):
        documents = read(url)
        assert [(one.text, one.columns, one.text_at) for one in documents] == expected
        assert documents[0].name.startswith(("memory://shop/in/", "memory:///shop/in/"))


def test_a_dataset_is_read_from_a_url(here):
    to_dataset(here / "d")
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.put(str(here / "d"), "/data/d", recursive=True)
    for url in ("memory://data/d", "memory://data"):
        assert [one.text for one in read(url)] == [row["text"] for row in ROWS]


# Files whose names do not say that they are documents, or that are none, with what is read of them.
SILENT = {
    "report": (pdf(["a PDF"]), "a PDF"),
    "lie.txt": (docx(["Word"]), "Word"),
    "packed.txt.gz": (gzip.compress(pdf(["a PDF"])), "a PDF"),
    "archive": (zipped({"a": "b"}), "it is a ZIP archive and no document: unpack it first"),
    "notes": (b"plain", "plain"),
}


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A web server without ranges: what it serves can be read only from its beginning."""

    def log_message(self, *_):
        pass


def test_every_format_is_read_from_a_web_server(here):
    for name in ("groups.parquet", "file.arrow", "pandas.xlsx", "shop.db"):
        WRITERS[name](here / name)
    (here / "a.csv.gz").write_bytes(gzip.compress(b"text,n\nx,1\n"))
    (here / "large.jsonl").write_text(f'{{"text": "{"x" * 1_000}"}}\n' * 12_000)
    for name, (content, _) in SILENT.items():
        (here / name).write_bytes(content)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        try:
            for name in ("groups.parquet", "file.arrow", "pandas.xlsx", "shop.db"):
                documents = read(f"{base}/{name}?X-Amz-Signature={SECRET}")
                assert [one.text for one in documents] == [row["text"] for row in ROWS]
                assert documents[0].name.startswith(f"{base}/{name}?X-Amz-Signature=[key]:")
            assert [one.text for one in read(f"{base}/a.csv.gz")] == ["x"]
            assert len(read(f"{base}/large.jsonl")) == 12_000
            found = read(*(f"{base}/{name}" for name in SILENT))
            assert [one.text.strip() or one.error for one in found] == [
                text for _, text in SILENT.values()
            ]
            with pytest.raises(InputError, match="there is no such file"):
                source(f"{base}/gone.csv")
        finally:
            server.shutdown()


class FailingServer(http.server.BaseHTTPRequestHandler):
    """A web server that fails, sends in circles, or gives less than it promises."""

    def do_GET(self):
        if self.path.startswith("/fails"):
            self.send_error(500)
            return
        self.send_response(302 if self.path.startswith("/circle") else 404)
        self.send_header("location", self.path)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_HEAD(self):
        self.do_GET()

    def log_message(self, *_):
        pass


def test_what_a_web_server_answers_is_not_called_a_missing_file(here):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), FailingServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        try:
            for name, words in (
                ("fails.csv", "cannot be read: 500"), ("circle.csv", "cannot be read: "),
                ("gone.csv", "there is no such file"),
            ):  # fmt: skip
                with pytest.raises(InputError, match=words):
                    source(f"{base}/{name}")
        finally:
            server.shutdown()


class Endless(http.server.BaseHTTPRequestHandler):
    """A web server that never answers, or never ends."""

    def do_GET(self):
        if self.path.startswith("/silent"):
            self.connection.settimeout(30)
            # Until the client has gone.
            self.rfile.read(1)
            return
        self.send_response(200)
        self.end_headers()
        with suppress(OSError):
            while self.command == "GET":
                self.wfile.write(b"word " * 10_000)

    def do_HEAD(self):
        self.do_GET()

    def log_message(self, *_):
        pass


def test_a_web_server_that_never_answers_or_never_ends_is_left(here, monkeypatch):
    monkeypatch.setattr(remote_module, "_SILENT_S", 1.0)
    (here / "after.txt").write_text("after")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endless) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        try:
            with pytest.raises(InputError, match="cannot be read: "):
                source(f"{base}/silent.txt")
            first, second = read(f"{base}/endless.txt", "after.txt")
        finally:
            server.shutdown()
    assert first.error == "it is longer than the 1 MB a document may have"
    assert second.text == "after"


def test_a_store_that_gives_a_byte_a_second_costs_its_file(here, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("fanout.inputs.documents.remote.time.monotonic", lambda: clock[0])
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pipe("/in/a.csv", b"text\n" + b"x\n" * 5_000)
    (here / "after.txt").write_text("after")
    files = source("memory://in/a.csv", "after.txt")
    real = type(store.open("/in/a.csv")).read

    def drip(file, _size=-1):
        clock[0] += 1
        return real(file, 1)

    monkeypatch.setattr(type(store.open("/in/a.csv")), "read", drip)
    *_, slow, after = files.documents()
    assert slow.error == "cannot be read to its end: it gave 61 bytes in 61 s, which is too slow"
    assert after.text == "after"


def test_the_reason_of_a_client_does_not_quote_the_file():
    error = OSError("400, message: Data after `Connection: close`: b'my \\'secret\\' words' ^")
    assert one_line(error) == "400, message: Data after `Connection: close`: ... ^"


PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("packing", PACK)
def test_text_that_is_compressed_is_unpacked_as_it_is_read(here, packing):
    files = {"a.csv": b"text,n\nx,1\ny,2\n", "b.jsonl": b'{"text": "z"}\n', "c.txt": b"plain"}
    store = fsspec.filesystem("memory")
    store.store.clear()
    for name, data in files.items():
        (here / f"{name}{packing}").write_bytes(PACK[packing](data))
        store.pipe(f"/p/{name}{packing}", PACK[packing](data))
    whole = PACK[packing]("\n".join(f'{{"text": "{i * 7919}"}}' for i in range(9_999)).encode())
    (here / f"d.jsonl{packing}").write_bytes(whole[: len(whole) // 2])
    for inputs in (["*.*"], ["memory://p"]):
        documents = read(*inputs)
        assert [one.text for one in documents[:4]] == ["x", "y", "z", "plain"]
    local = read(".")
    assert local[-1].name == f"d.jsonl{packing}"
    assert local[-1].error.startswith("cannot be unpacked to its end: ")
    (here / f"e.csv{packing}").write_bytes(b"no such thing")
    assert len([one for one in read(f"e.csv{packing}", "c.txt" + packing) if one.error]) == 1


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("memory://nowhere/x.csv", "there is no such file or folder"),
        ("memory://nowhere/*.csv", "no file of a known kind is there; known are text"),
        ("nonsense://x/y.csv", "is no URL that can be read: "),
    ],
)
def test_a_url_with_nothing_behind_it_says_so(url, words):
    with pytest.raises(InputError, match=words):
        source(url)


@pytest.mark.parametrize(
    ("url", "module", "words"),
    [
        ("s3://bucket/x.csv", "s3fs", r"s3:// needs a package: pip install 'fanout-llm\[s3\]'"),
        ("gs://bucket/x.csv", "gcsfs", "gs:// needs a package: .*gcsfs"),
    ],
)
def test_the_package_that_a_url_needs_is_named(url, module, words, monkeypatch):
    registry = importlib.import_module("fsspec.registry")
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(registry, "registry", {})
    with pytest.raises(InputError, match=words):
        source(url)


SECRET = "hunter2-is-long-enough"


class Broken(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """A store that fails with an error which quotes its credentials."""

    protocol = "broken"
    when = "open"

    @classmethod
    def _strip_protocol(cls, path):
        return path.removeprefix("broken://")

    def isfile(self, path):
        if self.when == "look":
            raise RuntimeError(f"refused\nfor https://me:{SECRET}@host/{path}?sig={SECRET}")
        return True

    def open(self, path, mode="rb", **_options):
        fail = self.when == "open"

        class File(io.BytesIO):
            def read(self, size=-1):
                if self.tell() > 0 or fail:
                    raise RuntimeError(f"gone: https://me:{SECRET}@host/?token={SECRET}")
                return super().read(min(size, 20))

        return File(b'{"text": "one"}\n{"text": "two"}\n')


@pytest.mark.parametrize("when", ["look", "open", "read"])
@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.csv", "a.txt", "a.parquet", "a.arrow", "a.xlsx", "a.db"]
)
def test_what_a_store_says_is_one_line_without_credentials(name, when, monkeypatch):
    fsspec.register_implementation("broken", Broken, clobber=True)
    monkeypatch.setattr(Broken, "when", when)
    try:
        shown = " ".join(
            f"{one.name} {one.error}" for one in read(f"broken://me:{SECRET}@b/{name}")
        )
    except InputError as error:
        shown = str(error)
    assert SECRET not in shown
    assert "\n" not in shown
    # zipfile takes any error for the end of what is no archive.
    assert "gone" in shown or "refused" in shown or "is no whole Excel workbook" in shown


def test_what_is_written_of_a_job_has_no_credentials_of_its_inputs():
    inputs = [f"https://me:{SECRET}@h/a.csv?sig={SECRET}", "data/a.csv", "sqlite:///a.db?table=t"]
    record = spec_record(make_spec(model="fake", prompt="{input}", inputs=inputs))
    assert record["inputs"] == ["https://me:[key]@h/a.csv?sig=[key]", *inputs[1:]]


@pytest.mark.parametrize(
    ("name", "package"), [("a.parquet", "pyarrow"), ("a.arrow", "pyarrow"), ("dataset", "pyarrow"),
                          ("a.feather", "pyarrow"), ("a.xlsx", "openpyxl")],
)  # fmt: skip
def test_a_missing_extra_is_named_with_the_line_that_installs_it(here, name, package, monkeypatch):
    writer = next(
        WRITERS[one] for one in WRITERS if one.rpartition(".")[2] == name.rpartition(".")[2]
    )
    writer(here / name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"needs {package}, .*pip install 'fanout-llm\[tables\]'"):
        read(name)


def test_a_text_that_many_rows_share_does_not_fill_the_memory(tmp_path):
    # 51 kB on the disk, 819 MB if all rows had their copy at once.
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array(["x" * 100_000]).take([0] * 8_192)}), path)
    with closing(pq.ParquetFile(path)) as found:
        assert parquet_module._batch_rows(found.metadata.row_group(0)) < 100
    assert sum(1 for _ in source(str(path)).documents()) == 8_192


def test_rows_that_share_labels_are_read_in_large_parts(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"text {n % 3}" for n in range(20_000)]}), path)
    with closing(pq.ParquetFile(path)) as found:
        assert parquet_module._batch_rows(found.metadata.row_group(0)) > 1_000
