"""A table goes in, and comes out as a file of each format; branches are printed as they end."""

from __future__ import annotations

import csv
import json
import os
import signal
import sqlite3
import subprocess
import time
from contextlib import closing

import duckdb
import openpyxl
import pandas as pd
import polars as pl
import pytest

from .conftest import FANOUT

ROWS = 3_708
TEXTS = ["plain", "=1+1", "a,b", "two\nlines", 'qu"ote', "é😀", "-5", " led"]


@pytest.fixture
def reviews(here):
    """The rows of a file ``in.csv``, and one of them that has no text."""
    rows = [
        {"id": f"{n:05d}", "score": str(n % 11 - 5), "text": f"{n} {TEXTS[n % len(TEXTS)]}"}
        for n in range(ROWS)
    ]
    rows[100]["text"] = ""
    with (here / "in.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["id", "score", "text"])
        writer.writeheader()
        writer.writerows(rows)
    return rows


def columns_of(folder):
    """The columns of each file, as each of the usual libraries opens it: all as text."""
    text = {"id": str, "score": str}
    sql = "SELECT * FROM "
    with closing(sqlite3.connect(folder / "o.sqlite")) as database:
        found = {
            "csv pandas": pd.read_csv(folder / "o.csv", dtype=text),
            "csv polars": pl.read_csv(folder / "o.csv", schema_overrides={"id": pl.String}),
            "csv duckdb": duckdb.sql(f"{sql}'{folder}/o.csv'").pl(),
            "parquet pandas": pd.read_parquet(folder / "o.parquet"),
            "parquet polars": pl.read_parquet(folder / "o.parquet"),
            "parquet duckdb": duckdb.sql(f"{sql}'{folder}/o.parquet'").pl(),
            "xlsx pandas": pd.read_excel(folder / "o.xlsx", dtype=text),
            "sqlite pandas": pd.read_sql(f"{sql}outputs", database),
            "sqlite polars": pl.read_database(f"{sql}outputs", database, infer_schema_length=None),
        }
    columns = {
        name: {column: list(frame[column]) for column in frame.columns}
        for name, frame in found.items()
    }
    with closing(openpyxl.load_workbook(folder / "o.xlsx", read_only=True)) as book:
        names, *rows = book["outputs"].iter_rows(values_only=True)
    columns["xlsx openpyxl"] = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    return columns


def test_a_table_comes_out_as_it_went_in_with_the_answers_beside_it(fanout, here, reviews):
    done = fanout("run", "in.csv", "-m", "fake", "-p", "{score}: {input}", "--out", "o.csv")
    assert (done.status, done.stdout) == (0, "")
    for suffix in ("tsv", "jsonl", "parquet", "xlsx", "sqlite"):
        assert fanout("results", "latest", "--out", f"o.{suffix}", "-q").status == 0
    answers = None
    for name, columns in columns_of(here).items():
        assert list(columns) == [
            "id", "score", "text", "output", "error_kind", "error", "document", "pages", "headings", "chunk",
            "attempts", "input_tokens", "output_tokens", "cost_usd", "cached", "saved_usd",
        ], name  # fmt: skip
        assert columns["id"] == [row["id"] for row in reviews], name
        assert list(map(str, columns["score"])) == [row["score"] for row in reviews], name
        texts = [row["text"] for row in reviews]
        assert columns["text"][:100] == texts[:100], name
        assert columns["text"][101:] == texts[101:], name
        assert [n for n, kind in enumerate(columns["error_kind"]) if kind == "bad_request"] == [100]
        assert columns["chunk"] == list(range(ROWS)), name
        got = columns["output"]
        answers = answers or [*got[:100], *got[101:]]
        assert [*got[:100], *got[101:]] == answers, name
    lines = [json.loads(line) for line in (here / "o.jsonl").read_text("utf-8").splitlines()]
    assert [line["id"] for line in lines] == [row["id"] for row in reviews]
    # What is there is kept, and a wrong name costs no call.
    again = fanout("results", "latest", "--out", "o.csv")
    assert (again.status, "o.csv is there already" in again.stderr) == (2, True)
    wrong = fanout("run", "in.csv", "-m", "fake", "-p", "{input}", "--out", "o.ods")
    assert (wrong.status, ".xlsx, .sqlite" in wrong.stderr) == (2, True)
    assert len(fanout("runs", "--json").stdout.splitlines()) == 1
    assert sorted(each.name for each in here.iterdir() if each.name.startswith("o")) == [
        "o.csv", "o.jsonl", "o.parquet", "o.sqlite", "o.tsv", "o.xlsx",
    ]  # fmt: skip


def test_branches_are_printed_as_they_end_and_the_aggregate_last(fanout, here, reviews):
    options = [
        "-m",
        "fake?fail_rate=0.1&fail_kind=bad_request",
        "-p",
        "{input}",
        "--reduce",
        "vote",
    ]
    done = fanout("run", "in.csv", *options, "--stream", "--out", "out")
    assert done.status == 0
    *lines, last = map(json.loads, done.stdout.splitlines())
    assert list(last) == ["aggregated"]
    assert sorted(line["index"] for line in lines) == list(range(ROWS))
    written = {
        row["index"]: row
        for name in ("outputs", "errors")
        for row in map(json.loads, (here / "out" / f"{name}.jsonl").read_text("utf-8").splitlines())
    }
    for line in lines:
        row = written[line["index"]]
        assert (line["id"], line["text"]) == (row["id"], row["text"])
        if line["output"] is None:
            assert (line["error_kind"], line["error"]) == (row["kind"], row["message"])
        else:
            assert line == row
    assert 0 < sum(line["output"] is None for line in lines) < ROWS


def test_a_reader_of_the_stream_that_goes_away_ends_the_printing_and_not_the_run(fanout, here):
    (here / "in.jsonl").write_text('{"text": "x"}\n' * 2_000)
    command = [FANOUT, "run", "in.jsonl", "-m", "fake", "-p", "{input}", "--stream"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["document"].startswith("in.jsonl:")
        process.stdout.close()
        said = process.stderr.read().decode() if process.stderr is not None else ""
        assert process.wait(120) == 141
    assert "2,000 of 2,000 branches" in said
    assert "the reader has closed the pipe" in said
    assert json.loads(fanout("status", "latest", "--json").stdout)["status"] == "succeeded"


def test_a_command_that_is_stopped_while_it_writes_leaves_no_whole_file(fanout, here, popen):
    (here / "in.jsonl").write_text('{"text": "x", "pad": "%s"}\n' % ("y" * 6_000) * 3_000)
    assert fanout("run", "in.jsonl", "-m", "fake", "-p", "{input}", "--out", "all").status == 0
    unfinished = here / "o.xlsx.unfinished"
    command = ("fanout", "results", "latest", "--out", "o.xlsx")
    for number in (signal.SIGINT, signal.SIGKILL):
        with popen(*command, stderr=subprocess.PIPE) as process:
            until = time.monotonic() + 60
            while not (unfinished.exists() and unfinished.stat().st_size):
                assert time.monotonic() < until
                assert process.poll() is None
                time.sleep(0.002)
            process.send_signal(number)
            process.wait(120)
        assert process.returncode in {130, -number}
        assert not (here / "o.xlsx").exists()
        assert unfinished.exists() == (number == signal.SIGKILL)
    # The next command takes the place of the one that was killed.
    assert fanout("results", "latest", "--out", "o.xlsx", "-q").status == 0
    assert not unfinished.exists()
    with closing(openpyxl.load_workbook(here / "o.xlsx", read_only=True)) as book:
        assert book["outputs"].max_row == 3_001


def stopped(popen, *options, number, ready):
    """Stop a run as soon as ``ready``; return its exit status and what it says on stderr."""
    words = ("run", "in.jsonl", "-m", "fake", "-p", "{input}", "-q", *options)
    with popen(
        "fanout", *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        ready(process)
        process.send_signal(number)
        said = process.communicate(timeout=120)[1]
    assert "Traceback" not in said
    return process.returncode, said


@pytest.mark.parametrize(("number", "out"), [(signal.SIGINT, "o.csv"), (signal.SIGTERM, "o/")])
def test_a_run_that_is_stopped_while_it_reads_leaves_a_table_file_as_it_was(
    fanout, here, popen, number, out
):
    (here / "in.jsonl").write_text('{"text": "x"}\n' * 200_000)
    (here / "o.csv").write_text("before\n")
    status, said = stopped(
        popen, "--stream", "--out", out, "--force", number=number,
        ready=lambda process: process.stdout.readline(),
    )  # fmt: skip
    assert status == 130
    assert "its input was not read to its end" in said
    assert (here / "o.csv").read_text() == "before\n"
    assert not (here / "o.csv.unfinished").exists()
    if out == "o/":
        assert "is not written" not in said
        assert json.loads((here / "o/run.json").read_text())["status"] == "cancelled"
        return
    [line] = [line for line in said.splitlines() if "o.csv is not written" in line]
    command = line.split("`")[1].split()
    assert command[0] == "fanout"
    assert fanout(*command[1:], "--force", "-q").status in {0, 1}
    assert (here / "o.csv").read_text().startswith("text,output,error_kind")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_run_begins_leaves_no_unfinished_file(here, popen, number):
    (here / "in.jsonl").write_text('{"text": "x"}\n')

    def ready(process):
        until = time.monotonic() + 60
        while not (here / "o.csv.unfinished").exists():
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.001)

    assert stopped(popen, "--out", "o.csv", number=number, ready=ready)[0] == 130
    assert [path.name for path in here.glob("o.csv*")] == []
