"""Where ``--out`` leads, and what is refused before the first call."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from fanout.cli.destinations import (
    out_options,
    require_no_input,
    require_room,
    require_room_for_rows,
)
from fanout.core.errors import InputError
from fanout.core.spec import make_spec
from fanout.runs.output_files import OutputFolder
from fanout.runs.rows import RowLayout
from fanout.runs.tables.formats import FORMATS
from fanout.runs.tables.output_file import OutputFile

JOB = {"model": "fake", "prompt": "{input}", "inputs": "nowhere.txt", "samples": 2}


def opened(*arguments, **job):
    """What a command with these arguments opens."""

    @click.command()
    @out_options
    def command(open_out):
        with open_out(make_spec(**{**JOB, **job})) as out:
            return out

    return command.main([*arguments], standalone_mode=False)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ([], type(None)), (["--out", "o"], OutputFolder), (["--out", "o.v2"], OutputFolder),
        (["--out", "o.csv/"], OutputFolder), (["--out", "o.txt/"], OutputFolder),
        (["--out", "there.csv"], OutputFolder), (["--out", "o.csv"], OutputFile),
        (["--out", "new/o.XLSX", "--wide"], OutputFile),
    ],
)  # fmt: skip
def test_a_name_is_that_of_a_folder_or_of_a_file(given, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("there.csv").mkdir()
    assert type(opened(*given)) is kind


@pytest.mark.parametrize("given", [["--out", "o.txt"], ["--out", "there.csv", "--wide"]])
def test_what_cannot_be_written_is_wrong_usage(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("there.csv").mkdir()
    with pytest.raises(click.UsageError, match=r"\.csv, \.tsv, \.jsonl, \.parquet, \.xlsx, \.sqli"):
        opened(*given)
    assert [each.name for each in tmp_path.iterdir()] == ["there.csv"]


@pytest.mark.parametrize(
    ("rows", "fields", "fits"),
    [
        (6, {}, True), (7, {}, False), (3, {"samples": 2}, True), (4, {"samples": 2}, False),
        (9, {"limit": 6}, True), (2, {"split": "lines"}, True), (3, {"split": "lines"}, False),
    ],
)  # fmt: skip
def test_rows_that_a_file_cannot_hold_are_refused_before_the_run(
    rows, fields, fits, tmp_path, monkeypatch
):
    monkeypatch.setitem(FORMATS, ".xlsx", FORMATS[".xlsx"]._replace(most_rows=6))
    (tmp_path / "in.csv").write_text("id,text\n" + '1,"a\nb\nc"\n' * rows)
    spec = make_spec(model="fake", prompt="{input}", inputs=str(tmp_path / "in.csv"), **fields)
    with OutputFile(tmp_path / "o.xlsx", RowLayout()) as out:
        if fits:
            require_room_for_rows(out, spec)
        else:
            with pytest.raises(
                InputError, match=r"can hold 6 branches, and there are more; a \.csv"
            ):
                require_room_for_rows(out, spec)
    with OutputFile(tmp_path / "o.csv", RowLayout()) as out:
        require_room_for_rows(out, spec)


def test_other_documents_are_not_read_twice(tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, ".xlsx", FORMATS[".xlsx"]._replace(most_rows=1))
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("x")
    with OutputFile(tmp_path / "o.xlsx", RowLayout()) as out:
        for given in (str(tmp_path), "-", "run:abcdefgh"):
            require_room_for_rows(out, make_spec(model="fake", prompt="{input}", inputs=given))
        with pytest.raises(InputError, match="can hold 1 branch, and"):
            require_room(out, 2)
    require_room(None, 10**9)


@pytest.mark.parametrize(
    ("out", "inputs"),
    [
        ("own.csv", ["own.csv"]), ("data/../own.csv", ["data", "own.csv"]),
        ("data/in.csv", ["data"]), ("data/in.csv", ["data/*.csv"]), ("hard.csv", ["own.csv"]),
        ("own.csv", ["linked.csv"]), ("data", ["data/outputs.jsonl"]), ("data", ["data"]),
        ("base.sqlite", ["sqlite:///base.sqlite?table=t"]), ("own.jsonl", ["own.jsonl"]),
    ],
)  # fmt: skip
def test_a_file_of_the_input_is_not_replaced(out, inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    for name in ("own.csv", "own.jsonl", "base.sqlite", "data/in.csv", "data/outputs.jsonl"):
        Path(name).write_text("text\nmine\n")
    Path("hard.csv").hardlink_to("own.csv")
    Path("linked.csv").symlink_to("own.csv")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=f"cannot write to --out {out}.*: it is a file of the inp"):
        opened("--out", out, "--force", inputs=inputs)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    # Another file may be replaced.
    Path("other.csv").write_text("old")
    assert type(opened("--out", "other.csv", "--force", inputs=inputs)) is OutputFile
    with pytest.raises(InputError, match=r"--report own\.csv: it is a file of the input"):
        require_no_input([Path("own.csv")], make_spec(**{**JOB, "inputs": "own.csv"}), "--report")
