"""The examples run as a user runs them: programs with a fake in place of their model, jobs with it."""

from __future__ import annotations

import asyncio
import csv
import importlib.util
import json
import os
import sys
from pathlib import Path

import httpx
import pandas as pd
import pytest
import yaml

from .conftest import forked

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAMS = sorted(path for path in EXAMPLES.iterdir() if path.suffix in {".py", ".ipynb", ".yaml"})
MOST_LINES = 50
# Tests share the local model, which serves four calls at once, and takes as long as the machine is busy.
PATIENCE_S = 290
patient = pytest.mark.timeout(PATIENCE_S + 10)


@pytest.fixture(autouse=True)
def fake_model(here, monkeypatch):
    monkeypatch.setenv("FANOUT_MODEL", "fake?context_tokens=2048")


@pytest.fixture
def run(forks):
    """Run a program of the examples, which warns of nothing."""

    def run(name, *arguments):
        words = [str(EXAMPLES / name), *arguments]
        done = forked(forks, True, "script", words, os.environ, 100)
        assert done.status == 0, done.stderr
        assert "succeeded" in done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_an_example_is_short(path):
    text = path.read_text()
    if path.suffix == ".ipynb":
        # Not at the top: every process collects all tests, and the package loads slowly.
        import nbformat

        text = "\n".join(cell.source for cell in nbformat.reads(text, as_version=4).cells)
    assert len(text.splitlines()) < MOST_LINES


@patient
def test_reviews_are_classified_by_the_local_model(fanout):
    done = fanout("run", str(EXAMPLES / "classify.yaml"), "--json", timeout_s=PATIENCE_S)
    assert done.status == 0, done.stderr
    result = json.loads(done.stdout)
    votes = result["aggregated"]["votes"]
    assert set(votes) <= {"negative", "positive"}
    assert sum(votes.values()) == 12


@patient
def test_facts_of_reviews_become_a_table_by_the_local_model(fanout, here):
    done = fanout("run", str(EXAMPLES / "extract.yaml"), "--out", "facts.csv", timeout_s=PATIENCE_S)
    assert done.status == 0, done.stderr
    with (here / "facts.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    for row in rows:
        assert row["topic"]
        assert row["sentiment"] in {"negative", "positive"}
        assert 1 <= int(row["stars"]) <= 5
        assert row["text"], "the columns of the file are there too"


@patient
def test_the_majority_of_several_answers_is_found_by_the_local_model(fanout, here):
    done = fanout(
        "run", str(EXAMPLES / "consensus.yaml"), "--out", "consensus.csv", timeout_s=PATIENCE_S
    )
    assert done.status == 0, done.stderr
    with (here / "consensus.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    for row in rows:
        assert row["output"] in {"negative", "positive"}
        assert 0.5 < float(row["share"]) <= 1
        assert 3 <= int(row["samples"]) <= 5
    votes = json.loads(done.stdout)["votes"]
    assert sum(votes.values()) == sum(int(row["samples"]) for row in rows)


def as_fake(here, name, **fields):
    """The job of an example with the fake model, and its inputs where they are."""
    job = yaml.safe_load((EXAMPLES / name).read_text()) | {"model": "fake", **fields}
    job["inputs"] = [str(EXAMPLES / one) for one in job["inputs"]]
    path = here / name
    path.write_text(yaml.safe_dump(job))
    return str(path)


def test_contracts_are_routed_and_judged(fanout, here):
    job = as_fake(here, "contracts.yaml")
    done = fanout("run", job, "--out", "articles.csv")
    assert done.status == 0, done.stderr
    with (here / "articles.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["facts.holder"]) for row in rows] == [row["kind"] == "right" for row in rows]
    assert [bool(row["duty"]) for row in rows] == [row["kind"] == "office" for row in rows]
    assert {row["check.pass"] for row in rows} <= {"true", "false"}
    assert [row["rejected"] for row in rows] == [
        {"true": "false", "false": "true"}[row["check.pass"]] for row in rows
    ]
    shown = fanout("show", "latest", "0").stdout
    assert "step kind" in shown
    assert "Congress shall make no law" in shown
    drawn = fanout("explain", job).stdout
    assert "only if kind is right" in drawn


@patient
def test_contracts_are_routed_and_judged_by_the_local_model(fanout):
    job = str(EXAMPLES / "contracts.yaml")
    done = fanout("run", job, "--limit", "1", "--stream", timeout_s=PATIENCE_S)
    assert done.status == 0, done.stderr
    branch = json.loads(done.stdout.splitlines()[0])
    assert branch["steps"]["kind"] in {"right", "office"}
    assert branch["steps"]["note"] == branch["output"]


def test_reviews_are_asked_about_by_aspect(fanout, here):
    done = fanout("run", as_fake(here, "aspects.yaml"), "--json")
    assert done.status == 0, done.stderr
    table = json.loads(done.stdout)["aggregated"]
    assert {row["aspect"] for row in table} == {"acting", "story"}
    assert sum(row["count"] for row in table) == 12


def test_a_handbook_is_summed_up_by_a_tree(fanout, here):
    done = fanout("run", as_fake(here, "handbook.yaml", context_tokens=512), "--json")
    assert done.status == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["aggregated"].startswith("fake answer")
    assert len(result["stages"]) > 2, "groups of notes, and a last one"


def test_minutes_are_split_into_decisions(fanout, here):
    job = as_fake(here, "minutes.yaml")
    done = fanout("run", job, "--stream")
    assert done.status == 0, done.stderr
    # The fake model proposes the paragraphs.
    assert "a model split 2 documents into 9 parts" in done.stderr
    rows = sorted((json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")),
                  key=lambda row: row["index"])  # fmt: skip
    assert [row["title"][:8] for row in rows] == [
        "Minutes ", "Present:", "1. Drain", "2. Keys.",
        "Minutes ", "Present:", "1. Water", "2. Paths", "3. Open ",
    ]  # fmt: skip
    assert "takes it. Dev signs by 12 April." in fanout("show", "latest", "3").stdout, "{before}"
    assert "splits each into parts" in fanout("explain", job).stdout
    assert "split by the model: 2 calls" in fanout("estimate", job).stdout


def test_questions_are_answered_from_the_passages_of_a_folder(fanout, here):
    job = str(EXAMPLES / "answers.yaml")
    done = fanout("run", job, "--model", "fake", "--out", "answers.jsonl")
    assert done.status == 0, done.stderr
    assert "passages of" in done.stderr
    done = fanout("results", done.stderr.partition("run ")[2].split()[0], "--out", "rows")
    assert done.status == 0, done.stderr
    rows = (here / "rows" / "outputs.jsonl").read_text().splitlines()
    found = [json.loads(line)["passages"] for line in rows]
    best = [one[0]["source"] for one in found]
    assert best == ["amendment-26.txt", "amendment-18.txt", "amendment-22.txt"]
    assert all(len(one) == 3 for one in found)


@patient
def test_two_prompts_are_compared_on_labels_by_the_local_model(fanout):
    job = str(EXAMPLES / "compare.yaml")
    done = fanout("eval", job, "--limit", "6", "--json", timeout_s=PATIENCE_S)
    assert done.status == 0, done.stderr
    evaluation = json.loads(done.stdout)["evaluation"]
    assert [one["aspect"] for one in evaluation["variants"]] == ["short", "with examples"]
    assert [(one["count"], one["usable"]) for one in evaluation["variants"]] == [(6, 1.0)] * 2
    assert len(evaluation["comparisons"]) == 1


def test_documents_of_a_folder_are_read_with_their_pages(run):
    lines = run("documents.py").splitlines()
    for start in (
        "rights.pdf pages 1",
        "rights.pdf pages 2",
        "reconstruction.docx",
        "suffrage.html",
    ):
        assert any(line.startswith(start) and "fake answer" in line for line in lines)
    assert [line.partition(" in all")[0] for line in lines[-3:]] == [
        "reconstruction.docx",
        "rights.pdf",
        "suffrage.html",
    ]


def test_a_table_comes_out_with_the_answers_beside_its_columns(run, here):
    out = run("table.py", "new.parquet")
    assert "new.parquet: 27 rows, 0 failed" in out
    answers = pd.read_parquet(here / "new.parquet")
    given = pd.read_csv(EXAMPLES / "amendments.csv", dtype="str")
    assert answers[list(given.columns)].equals(given)
    assert answers["output"].str.startswith("fake answer").all()


def test_a_second_run_asks_about_the_answers_of_the_first(run):
    *lines, topics = run("two_runs.py").splitlines()
    assert [line.split(" fake")[0] for line in lines[:2]] == ["1 1791", "2 1791"]
    assert len(lines) == 27
    assert topics.startswith("fake answer")


def test_the_notebook_runs():
    import nbclient
    import nbformat

    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    # A notebook is run in its own folder, and nothing is written there.
    kernel = {"metadata": {"path": str(EXAMPLES)}}
    nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources=kernel
    ).execute()
    shown = [
        "".join(
            str(output.get("text", "")) + str(output.get("data", "")) for output in cell.outputs
        )
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]
    _, result, answers, streamed, _ = shown
    assert "succeeded: 27 of 27 branches" in result
    assert "<b>Run " in result
    assert "17 more rows" in result
    assert "ratified" in answers
    assert streamed.count("fake answer") == 3


def test_the_web_service_answers_and_streams():
    spec = importlib.util.spec_from_file_location("api", EXAMPLES / "api.py")
    assert spec is not None
    api = importlib.util.module_from_spec(spec)
    sys.modules["api"] = api
    spec.loader.exec_module(api)

    async def use():
        texts = {"one": "I loved it", "two": "Never again"}
        transport = httpx.ASGITransport(app=api.app)
        async with (
            api.app.router.lifespan_context(api.app),
            httpx.AsyncClient(transport=transport, base_url="http://test", timeout=120) as client,
        ):
            whole, *others = await asyncio.gather(
                client.post("/reviews", json=texts),
                client.post("/reviews/stream", json=texts),
                client.post("/reviews", json={}),
                client.post("/reviews/stream", json={}),
            )
        return whole, others

    whole, (streamed, empty, empty_stream) = asyncio.run(use())
    answers = whole.json()
    assert list(answers) == ["one", "two"]
    assert all(answer.startswith("fake answer") for answer in answers.values())
    lines = [json.loads(line) for line in streamed.text.splitlines()]
    assert {name: text for line in lines for name, text in line.items()} == answers
    assert (empty.status_code, "chunks is empty" in empty.text) == (422, True)
    [line] = map(json.loads, empty_stream.text.splitlines())
    assert "chunks is empty" in line["error"]
