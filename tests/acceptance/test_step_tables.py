"""Steps in files: each format has a column for each step, and rows of JSON have them all."""

from __future__ import annotations

import csv
import json
import sqlite3

import pytest
import yaml
from openpyxl import load_workbook
from pyarrow import parquet

VERDICT = {"reasons": "r", "pass": False, "score": 2, "feedback": "kinder"}
JOB = {
    "inputs": ["in.csv"],
    "model": "fake",
    "steps": [
        {"name": "kind", "prompt": "K {input}", "choices": ["bill", "letter"]},
        {
            "name": "facts",
            "prompt": "F {kind} {input}",
            "schema": {
                "type": "object",
                "properties": {"days": {"type": "integer"}},
                "required": ["days"],
            },
        },
        {"name": "error", "function": "mine:third_fails", "when": {"kind": ["bill", "letter"]}},
        {"name": "note", "prompt": "N {facts.days}"},
        {"name": "check", "judge": "note", "criteria": "kind", "model": "mine:judge"},
    ],
}
MINE = f"""
def third_fails(branch):
    if branch["id"] == "3":
        raise ValueError("no third")
    return "code " + branch["kind"]


def judge(prompt):
    return {json.dumps(VERDICT)!r}
"""
STEPS = ["kind", "facts.days", "check.reasons", "check.pass", "check.score", "check.feedback"]


def read(path):
    if path.suffix == ".csv":
        with path.open() as file:
            return list(csv.DictReader(file))
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    if path.suffix == ".xlsx":
        names, *rows = load_workbook(path).active.iter_rows(values_only=True)
        return [dict(zip(names, row, strict=True)) for row in rows]
    with sqlite3.connect(path) as connection:
        connection.row_factory = sqlite3.Row
        [[name]] = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        return [dict(row) for row in connection.execute(f"SELECT * FROM {name}")]


@pytest.fixture
def done(fanout, here):
    """A run of three rows, of which the judge passes none, and the last one fails."""
    (here / "mine.py").write_text(MINE)
    (here / "in.csv").write_text("id,text\n1,one\n2,two\n3,three\n")
    (here / "job.yaml").write_text(yaml.safe_dump(JOB))
    return fanout("run", "job.yaml", "--out", "out.csv", PYTHONPATH=str(here))


def test_every_format_has_the_steps(done, fanout, here):
    assert done.status == 0, done.stderr
    # Each judged answer is made three times, and judged three times.
    assert "2 answers were rejected by a judge and kept" in done.stderr.replace("\n", " ")
    for suffix in (".csv", ".parquet", ".xlsx", ".sqlite"):
        path = here / f"out{suffix}"
        if suffix != ".csv":
            assert fanout("results", "latest", "--out", path.name).status == 0
        first, second, third = read(path)
        assert set(STEPS) <= first.keys()
        assert first["output"]
        assert str(first["rejected"]).lower() in ("true", "1")
        assert first["steps.error"] == f"code {first['kind']}"
        assert (int(second["check.score"]), second["check.feedback"]) == (2, "kinder")
        # What ran before the failure is there.
        assert (third["kind"], third["error_kind"]) == (third["kind"], "internal")
        assert third["kind"] in ("bill", "letter")
        assert third["error"] == "step error: ValueError: no third"
        assert not third["output"]
        assert not third["check.feedback"]

    assert fanout("results", "latest", "--out", "rows").status == 0
    rows = [json.loads(line) for line in (here / "rows/outputs.jsonl").read_text().splitlines()]
    [failed] = [json.loads(line) for line in (here / "rows/errors.jsonl").read_text().splitlines()]
    assert [list(row["steps"]) for row in rows] == [["kind", "facts", "error", "note", "check"]] * 2
    assert [row["steps"]["check"] for row in rows] == [VERDICT] * 2
    assert [row["rejected"] for row in rows] == [True, True]
    assert [row["usage"]["calls"] for row in rows] == [8, 8]
    assert list(failed["steps"]) == ["kind", "facts"]
    assert failed["rejected"] is False

    status = json.loads(fanout("status", "latest", "--json").stdout)
    assert (status["kept_rejected"], status["succeeded"], status["failed"]) == (2, 2, 1)
    assert status["usage"]["calls"] == 8 + 8 + 2
    # The calls of further steps are none that were made again.
    assert "made again" not in fanout("status", "latest").stdout
    streamed = fanout("run", "job.yaml", "--stream", PYTHONPATH=str(here)).stdout.splitlines()
    kinds = sorted(
        (row["id"], row["rejected"], len(row["steps"])) for row in map(json.loads, streamed)
    )
    assert kinds == [("1", True, 5), ("2", True, 5), ("3", False, 2)]
