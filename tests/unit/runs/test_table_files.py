"""Table files: each format holds what went in, and a file of its name is always complete."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import resource
import secrets
import sqlite3
import stat
from contextlib import contextmanager, nullcontext
from pathlib import Path
from zipfile import ZipFile

import duckdb
import openpyxl
import pandas as pd
import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fanout.core.errors import InputError, RunError
from fanout.core.spec import make_spec
from fanout.runs.rows import RowLayout, layout_of
from fanout.runs.tables import output_file, xlsx
from fanout.runs.tables.formats import FORMATS, format_of
from fanout.runs.tables.output_file import OutputFile
from fanout.runs.tables.spool import MemorySpool
from fanout.runs.tables.table import gather
from fanout.runs.tables.text_files import defused, write_csv, write_tsv

from .test_results import result
from .test_tables import branch

SUFFIXES = [*FORMATS]
LIMITED = [".xlsx", ".sqlite"]
NASTY = [
    "plain", " led", "trailed ", "a,b", "a\tb", 'qu"ote', '"', '""', "line\nbreak", "cr\rlf\r\n", "é😀",
    "007", "1e5", "true", "x" * 5_000, "a;b|c", "#no comment", "\\n", "</t>&amp;<!--", "_x0041_", "[1]",
    "\n", " ", "\ufeffmark", "d'Ile", "a\u2028b", "-5", "+1.5", "-3%",
]  # fmt: skip
FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "=", "-", "--5", "-a"]


def write(path, outputs, layout=None, **options):
    with OutputFile(path, layout or RowLayout(), **options) as file:
        return file.write(outputs)


def texts(path):
    """The column ``text`` of a file, as it is opened by what is common for its format."""
    readers = {
        ".csv": lambda: [
            pd.read_csv(path, dtype=str, keep_default_na=False)["text"].tolist(),
            pl.read_csv(path, infer_schema=False)["text"].to_list(),
            rows_of(f"SELECT text FROM read_csv('{path}', all_varchar = true, delim = ',', "
                    "quote = '\"', escape = '\"', header = true, new_line = '\\n')"),
            [row["text"] for row in csv.DictReader(opened(path))],
        ],
        ".tsv": lambda: [
            pd.read_csv(path, dtype=str, keep_default_na=False, sep="\t")["text"].tolist(),
            pl.read_csv(path, infer_schema=False, separator="\t")["text"].to_list(),
        ],
        ".jsonl": lambda: [
            [row["text"] for row in lines(path)],
            pl.read_ndjson(path)["text"].to_list(),
        ],
        ".parquet": lambda: [
            pd.read_parquet(path)["text"].tolist(),
            pl.read_parquet(path)["text"].to_list(),
            rows_of(f"SELECT text FROM '{path}'"),
        ],
        ".xlsx": lambda: [sheet(path)["text"]],
        ".sqlite": lambda: [rows_of("SELECT text FROM outputs", sqlite3.connect(path))],
    }  # fmt: skip
    return readers[path.suffix]()


def opened(path):
    return io.StringIO(path.read_bytes().decode(), newline="")


def lines(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def rows_of(query, database=duckdb):
    return [row[0] for row in database.execute(query).fetchall()]


def sheet(path):
    """The columns of a sheet, none of whose cells is a formula."""
    names, *rows = openpyxl.load_workbook(path)["outputs"].iter_rows()
    assert "f" not in {cell.data_type for row in (names, *rows) for cell in row}
    values = zip(*[[cell.value for cell in row] for row in rows], strict=True)
    return dict(zip([cell.value for cell in names], map(list, values), strict=True))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_texts_come_back_as_they_went_in(suffix, tmp_path):
    path = tmp_path / f"out{suffix}"
    assert write(path, [branch(n, columns={"text": text}) for n, text in enumerate(NASTY)]) == []
    for found in texts(path):
        if suffix == ".xlsx":
            # A program other than Excel may not undo the escape of what Excel takes for one.
            assert [text.replace("_x005F_", "_") for text in found] == NASTY
        else:
            assert found == NASTY


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@given(cells=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=1))
@example(cells=['\r",\n', "", "'=1"])
@settings(max_examples=40, deadline=None)
def test_any_text_comes_back_from_csv_except_for_formulas(suffix, cells):
    file = io.BytesIO()
    rows = [branch(n, columns={"text": cell}) for n, cell in enumerate(cells)]
    writer = {".csv": write_csv, ".tsv": write_tsv}[suffix]
    losses = writer(gather(rows, RowLayout(), MemorySpool()), file)
    wanted = list(map(defused, cells))
    assert bool(losses) == (wanted != cells)
    separator = {".csv": ",", ".tsv": "\t"}[suffix]
    text = file.getvalue().decode()
    found = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    assert [row["text"] for row in found] == wanted
    for frame in (
        pd.read_csv(io.BytesIO(file.getvalue()), dtype=str, keep_default_na=False, sep=separator),
        pl.read_csv(io.BytesIO(file.getvalue()), infer_schema=False, separator=separator),
    ):  # fmt: skip
        assert list(frame["text"]) == wanted


@given(cells=st.lists(st.text(st.characters(codec="utf-8")), min_size=1))
@example(cells=["\x00\x1f\ufffe", "\r\n\t", "a\rb"])
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_text_comes_back_from_xlsx_except_for_what_xml_lacks(cells, tmp_path):
    cells = [f".{cell}" for cell in cells]
    path = tmp_path / "out.xlsx"
    said = write(path, [branch(0, columns={"text": cell}) for cell in cells], replaces=True)
    illegal = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
    assert sheet(path)["text"] == [illegal.sub("\ufffd", cell) for cell in cells]
    assert bool(said) == any(map(illegal.search, cells))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_formulas_are_defused_where_spreadsheets_run_them(suffix, tmp_path):
    path = tmp_path / f"out{suffix}"
    write(path, [branch(n, text, {"text": text, text: 1}) for n, text in enumerate(FORMULAS)])
    for found in texts(path):
        if suffix in {".csv", ".tsv"}:
            assert found == [f"'{text}" for text in FORMULAS]
        else:
            assert found == FORMULAS
    if suffix == ".csv":
        header = next(csv.reader(opened(path)))
        assert header[1:11] == [f"'{text}" for text in FORMULAS]
    if suffix == ".xlsx":
        [style] = {cell.quotePrefix for cell in openpyxl.load_workbook(path)["outputs"]["A"][1:]}
        assert style


@pytest.mark.parametrize(
    "text", ["-5", "+5", "-5.25", "-1,234.5", "-1e-7", "+.5", "-10%", "", "a=1", "'", "1-1", " =1"]
)
def test_what_is_no_formula_stays(text):
    assert defused(text) == text


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_types_and_missing_cells_are_kept(suffix, tmp_path):
    path = tmp_path / f"out{suffix}"
    columns = [
        {"n": -5, "x": 0.5, "b": True, "s": "", "mixed": 1, "nested": {"a": [1, "é"]}},
        {"n": None, "x": 2, "b": None, "s": None, "mixed": "-5", "nested": None, "late": 2**60},
    ]
    write(path, [branch(n, columns=one) for n, one in enumerate(columns)])
    frame = {
        ".csv": lambda: pl.read_csv(path),
        ".tsv": lambda: pl.read_csv(path, separator="\t"),
        ".jsonl": lambda: pl.DataFrame(lines(path), strict=False),
        ".parquet": lambda: pl.read_parquet(path),
        ".xlsx": lambda: pl.DataFrame(sheet(path), strict=False),
        ".sqlite": lambda: pl.read_database("SELECT * FROM outputs", sqlite3.connect(path)),
    }[suffix]()
    assert frame["n"].to_list() == [-5, None]
    assert frame["x"].to_list() == [0.5, 2]
    assert frame["b"].to_list() == [True, None]
    assert frame["late"].to_list() in ([None, 2**60], [None, str(2**60)])
    assert frame["cost_usd"].to_list() == [None, None]
    if suffix != ".jsonl":
        assert list(map(str, frame["mixed"])) == ["1", "-5"]
        assert frame["nested"][0] == '{"a": [1, "é"]}'
        assert frame["s"].to_list() in (["", None], [None, None])
    else:
        rows = lines(path)
        assert [row["mixed"] for row in rows] == [1, "-5"]
        assert rows[0]["nested"] == {"a": [1, "é"]}
        assert list(rows[0]) == list(rows[1])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_run_without_branches_has_a_header_all_the_same(suffix, tmp_path):
    path = tmp_path / f"out{suffix}"
    write(path, [])
    assert path.stat().st_size > 0 or suffix == ".jsonl"
    if suffix != ".jsonl":
        reader = {
            ".csv": lambda: pl.read_csv(path).columns,
            ".tsv": lambda: pl.read_csv(path, separator="\t").columns,
            ".parquet": lambda: pl.read_parquet(path).columns,
            ".xlsx": lambda: [cell.value for cell in openpyxl.load_workbook(path)["outputs"][1]],
            ".sqlite": lambda: rows_of("SELECT name FROM pragma_table_info('outputs')",
                                       sqlite3.connect(path)),
        }  # fmt: skip
        assert list(reader[suffix]())[:2] == ["output", "error_kind"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_names_of_columns_may_be_anything(suffix, tmp_path):
    path = tmp_path / f"out{suffix}"
    names = [
        "",
        " ",
        'a"b',
        "a'b",
        "a,b",
        "a\nb",
        "ID",
        "id",
        "Output",
        "ORDER",
        "sele ct; --",
        "é",
    ]
    write(path, [branch(0, columns=dict.fromkeys(names, "cell"))])
    if suffix == ".csv":
        found = next(csv.reader(opened(path)))
    elif suffix == ".sqlite":
        database = sqlite3.connect(path)
        found = [each[0] for each in database.execute("SELECT * FROM outputs").description]
        names[7], names[8] = "id_", "Output"
        assert found[len(names)] == "output_"
    elif suffix == ".xlsx":
        found = ["" if name is None else name for name in sheet(path)]
    else:
        return
    assert found[: len(names)] == names


def test_what_xlsx_cannot_hold_is_said(tmp_path):
    path = tmp_path / "out.xlsx"
    cells = ["x" * 40_000, "😀" * 20_000, "y" * 32_767, "a\x00b"]
    said = write(path, [branch(0, columns={"text": cell}) for cell in cells])
    assert said == [
        f"{path}: 2 cells were cut at 32,767 characters, the most that XLSX holds",
        f"{path}: 1 cell has characters that XLSX lacks: they became \ufffd",
    ]
    assert sheet(path)["text"] == ["x" * 32_767, "😀" * 16_383, "y" * 32_767, "a\ufffdb"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_cells_that_csv_changes_are_counted(suffix, tmp_path):
    path = tmp_path / f"out{suffix}"
    ids = ["-abc", "+49 30 123", "-5", "a", "=1"]
    lines = write(path, [branch(n, columns={"text": one}) for n, one in enumerate(ids)])
    changed = ["'-abc", "'+49 30 123", "-5", "a", "'=1"]
    for found in texts(path):
        assert found == (changed if suffix in {".csv", ".tsv"} else ids)
    if suffix in {".csv", ".tsv"}:
        words = (
            "3 cells got an apostrophe in front, as spreadsheets would take the text for a formula"
        )
        assert lines == [f"{path}: {words}; the other formats keep it as it is"]
    else:
        assert lines == []


def test_numbers_that_excel_would_round_are_text(tmp_path):
    path = tmp_path / "out.xlsx"
    numbers = [10**15 - 1, 10**15, -(10**15), 2**63 - 1]
    write(path, [branch(0, columns={"n": number}) for number in numbers])
    assert sheet(path)["n"] == [10**15 - 1, *map(str, numbers[1:])]


def test_a_sheet_that_turns_out_long_is_written_again_for_a_large_archive(tmp_path, monkeypatch):
    path = tmp_path / "out.xlsx"
    monkeypatch.setattr("zipfile.ZIP64_LIMIT", 20_000)
    write(path, [branch(n, columns={"text": "x" * 100}) for n in range(200)])
    monkeypatch.undo()
    assert len(sheet(path)["text"]) == 200
    with ZipFile(path) as archive:
        assert archive.testzip() is None


def test_the_columns_of_a_sheet_have_letters():
    letters = [xlsx._letters(n) for n in (0, 25, 26, 51, 52, 701, 702, 16_383)]
    assert letters == ["A", "Z", "AA", "AZ", "BA", "ZZ", "AAA", "XFD"]


@pytest.mark.parametrize("suffix", LIMITED)
def test_too_many_columns_are_refused_with_the_way_out(suffix, tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, suffix, FORMATS[suffix]._replace(most_columns=12))
    path = tmp_path / f"out{suffix}"
    with pytest.raises(
        RunError, match=r"have 16 columns, and .* holds 12; give a \.csv, \.parquet"
    ):
        write(path, [branch(0, columns={"a": 1, "b": 2, "c": 3})])
    assert list(tmp_path.iterdir()) == []


def test_too_many_rows_are_refused_before_and_after(tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, ".xlsx", FORMATS[".xlsx"]._replace(most_rows=3))
    with OutputFile(tmp_path / "out.xlsx", RowLayout()) as file:
        file.require_room(3)
        with pytest.raises(InputError, match=r"can hold 3 branches, .*; a \.csv, \.parquet or"):
            file.require_room(4)
        with pytest.raises(RunError, match=r"have 4 rows, and [.]xlsx holds 3"):
            file.write(branch(n) for n in range(4))
    with OutputFile(tmp_path / "out.xlsx", RowLayout(samples=2), is_wide=True) as file:
        assert file.most_branches == 6
    with OutputFile(tmp_path / "out.csv", RowLayout()) as file:
        file.require_room(10**9)


def _broken(good):
    yield from (branch(n, columns={"text": "x" * 100}) for n in range(good))
    raise KeyboardInterrupt


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_interrupted_file_leaves_the_one_before_and_nothing_else(suffix, tmp_path, monkeypatch):
    path = tmp_path / f"out{suffix}"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt):
        write(path, _broken(1_000), replaces=True)

    # Or while the file itself is written.
    def interrupted(table, file, unfinished):
        FORMATS_BEFORE[suffix].write(table, file, unfinished)
        raise KeyboardInterrupt

    monkeypatch.setitem(FORMATS, suffix, FORMATS[suffix]._replace(write=interrupted))
    with pytest.raises(KeyboardInterrupt):
        write(path, [branch(0)], replaces=True)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "before"


FORMATS_BEFORE = dict(FORMATS)


@contextmanager
def full_disk(size):
    """A limit on the size of files: a full disk that needs no rights."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores the signal.
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("fails", ["spool", "file"])
def test_a_full_disk_leaves_the_file_before_and_says_so(suffix, fails, tmp_path, monkeypatch):
    path = tmp_path / f"out{suffix}"
    path.write_text("before")
    size = 100_000
    if fails == "file":
        # Without room for the file: the rows wait elsewhere.
        monkeypatch.setattr(output_file, "FileSpool", lambda _folder: nullcontext(MemorySpool()))
    rows = [branch(n, columns={"text": secrets.token_hex(1_000)}) for n in range(1_000)]
    with full_disk(size), pytest.raises(RunError) as caught:
        write(path, rows, replaces=True)
    assert str(caught.value).startswith(f"cannot write the results to {path}: ")
    assert str(caught.value).endswith("; nothing was written")
    assert "large" in str(caught.value) or "full" in str(caught.value) or "I/O" in str(caught.value)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "before"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_has_its_mode_and_is_replaced_only_on_purpose(suffix, tmp_path):
    path = tmp_path / "new" / f"out{suffix.upper()}"
    write(path, [branch(0)])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    with pytest.raises(InputError, match="is there already: give another file, or --force to"):
        write(path, [branch(1)])
    assert path.read_bytes() == before
    write(path, [branch(1), branch(2)], replaces=True, mode=0o644)
    assert path.read_bytes() != before
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path):
    path = tmp_path / "out.csv"
    with OutputFile(path, RowLayout()) as file:
        path.write_text("another's")
        with pytest.raises(RunError, match="another program has written it meanwhile"):
            file.write([branch(0)])
    assert path.read_text() == "another's"
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_two_commands_cannot_write_to_one_file(tmp_path):
    path = tmp_path / "out.csv"
    with OutputFile(path, RowLayout()) as first:
        with pytest.raises(InputError, match=r"another fanout is about to write its results there"):
            OutputFile(path, RowLayout(), replaces=True)
        first.write([branch(0)])
    with OutputFile(path, RowLayout(), replaces=True):
        pass
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_what_a_killed_command_left_is_taken_over(tmp_path):
    path = tmp_path / "out.csv"
    left = tmp_path / "out.csv.unfinished"
    left.write_text("half" * 10_000)
    left.chmod(0o644)
    write(path, [branch(0)])
    assert "half" not in path.read_text()
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["out.csv", "out.csv.unfinished"])
@pytest.mark.parametrize("kind", ["symbolic link", "hard link"])
def test_links_of_others_are_not_followed(name, kind, tmp_path):
    target = tmp_path / "precious.txt"
    target.write_text("precious")
    link = tmp_path / "d" / name
    link.parent.mkdir()
    if kind == "symbolic link":
        link.symlink_to(target)
    else:
        os.link(target, link)
    path = tmp_path / "d" / "out.csv"
    if name == "out.csv" and kind == "symbolic link":
        with pytest.raises(InputError, match="symbolic link, which is not followed"):
            write(path, [branch(0)], replaces=True)
    else:
        write(path, [branch(0)], replaces=True)
        assert not path.is_symlink()
        assert "yes" in path.read_text()
    assert target.read_text() == "precious"


def test_a_folder_that_cannot_be_written_to_is_one_clear_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"cannot write to --out .*file/out\.csv: "):
        write(tmp_path / "file" / "out.csv", [])
    (tmp_path / "dir.csv").mkdir()
    with pytest.raises(InputError, match="it is no regular file"):
        write(tmp_path / "dir.csv", [])
    real = os.open

    def refused(path, *args, **kwargs):
        if str(path).endswith(".unfinished"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(InputError, match=r"cannot write to --out .*out\.csv: Permission denied"):
        write(tmp_path / "out.csv", [])


@pytest.mark.parametrize(
    "name",
    [
        "out.txt",
        "out.json",
        "out.db",
        "out.xls",
        "out.csv.gz",
        "out.sqlite3",
        "a.b/out.feather",
        "x.PDF",
    ],
)
def test_other_files_are_refused_with_the_list(name):
    with pytest.raises(InputError) as caught:
        format_of(Path(name))
    for suffix in SUFFIXES:
        assert suffix in str(caught.value)
    assert "a folder may have any name that ends in /" in str(caught.value)


@pytest.mark.parametrize(
    "name", ["out", "out.v2", "2026.11.28", "a.txt/out", ".out", "out.d", "x."]
)
def test_names_of_folders_are_no_files(name):
    assert format_of(Path(name)) is None


@pytest.mark.parametrize("name", ["out.csv", "out.CSV", "a/b.c.Parquet", "out.sqlite"])
def test_the_suffix_names_the_format(name):
    assert format_of(Path(name)) is FORMATS[Path(name).suffix.lower()]


def test_wide_has_something_to_widen(tmp_path):
    with pytest.raises(InputError, match="--wide has no effect: the run has one answer"):
        OutputFile(tmp_path / "out.csv", RowLayout(aspects=("one",)), is_wide=True)
    spec = make_spec(model=["fake", "local"], prompt="{input}", samples=3, certainty=0.9)
    voted = "its models and samples vote; leave it out, or give several aspects$"
    with pytest.raises(InputError, match=voted):
        OutputFile(tmp_path / "out.csv", layout_of(spec), is_wide=True)
    layout = RowLayout(aspects=("a", "b"))
    outputs = [branch(n, f"o{n}", chunk=n // 2, aspect="ab"[n % 2]) for n in range(4)]
    write(tmp_path / "out.csv", outputs, layout, is_wide=True)
    frame = pl.read_csv(tmp_path / "out.csv")
    assert frame["a"].to_list() == ["o0", "o2"]
    assert frame["b"].to_list() == ["o1", "o3"]


@pytest.mark.parametrize("package", ["pyarrow"])
def test_a_missing_package_is_named_before_a_run_begins(package, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(
        InputError, match=rf"needs {package}, .*: pip install 'fanout-llm\[tables\]'"
    ):
        OutputFile(tmp_path / "out.parquet", RowLayout())
    assert list(tmp_path.iterdir()) == []
    for suffix in set(SUFFIXES) - {".parquet"}:
        write(tmp_path / f"out{suffix}", [branch(0)])


@pytest.mark.parametrize("suffix", sorted(set(SUFFIXES) - {".jsonl"}))
def test_a_result_is_saved_as_a_table(suffix, tmp_path):
    path = tmp_path / f"r{suffix}"
    result(3).save(path)
    assert path.stat().st_size > 0
    with pytest.raises(InputError, match=r"is there already: give another file, or replace=True"):
        result(3).save(path)
    result(3).save(path, replace=True)
    with pytest.raises(InputError, match=r"^wide has no effect"):
        result(3).save(path, replace=True, wide=True)


def test_a_result_is_saved_to_a_folder_of_any_name(tmp_path):
    (tmp_path / "r.csv").mkdir()
    result(3).save(tmp_path / "r.csv")
    assert (tmp_path / "r.csv" / "run.json").exists()
    for name in ("r.json", "folder"):
        with pytest.raises(InputError, match="wide has no effect on"):
            result(3).save(tmp_path / name, wide=True)
    with pytest.raises(InputError, match="ends as no table does"):
        result(3).save(tmp_path / "r.txt")
