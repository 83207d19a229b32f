"""`fanout eval`, as a user runs it."""

from __future__ import annotations

import json

import pytest

FUNCTIONS = """
def words(prompt):
    return "negative" if "bad" in prompt else "positive"

def always(prompt):
    return '"Positive"'

def fields(prompt):
    return '{"mood": "%s", "stars": %d}' % ("sad" if "bad" in prompt else "glad", len(prompt) % 3)
"""
REVIEWS = (
    "text,gold,mood,stars\n"
    "a good film,positive,glad,2\n"
    "a bad film,negative,sad,1\n"
    "bad again,Negative,sad,0\n"
    "so good,,glad,1\n"
    "fine,positive,glad,9\n"
)
CHOICES = ("--choices", "positive,negative", "--label", "gold", "-p", "{input}")


@pytest.fixture
def job(here, monkeypatch):
    (here / "functions.py").write_text(FUNCTIONS)
    (here / "in.csv").write_text(REVIEWS)
    monkeypatch.setenv("PYTHONPATH", str(here))


def test_models_are_compared_by_their_labels(fanout, here, job):
    models = ("-m", "functions:words", "-m", "functions:always")
    done = fanout("eval", "in.csv", *CHOICES, *models, "--out", "out", "--report", "page.html")
    assert done.status == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1].split()[:5] == ["functions:words", "4", "100%", "1.000", "(0.510"]
    assert lines[2].split()[:4] == ["functions:always", "4", "100%", "0.500"]
    assert "functions:words against functions:always: better on 2 documents, worse on 0" in lines[4]
    assert lines[-1] == "note: not evaluated: 1 document without a label in 'gold'"
    assert "How good the answers are" in (here / "page.html").read_text()
    stored = json.loads((here / "out" / "run.json").read_text())["evaluation"]
    assert [one["correct"] for one in stored["variants"]] == [4, 2]
    # It is there to be evaluated again: by its labels, by others, and against a threshold.
    assert fanout("eval", "latest").stdout == done.stdout
    done = fanout("eval", "latest", "--fail-under", "0.5", "--json")
    record = json.loads(done.stdout)
    assert (done.status, record["threshold"]["is_met"]) == (0, True)
    assert record["evaluation"] == stored
    done = fanout(
        "eval", "latest", "--fail-under", "0.5", "--metric", "macro_f1", "--report", "p.html"
    )
    assert done.status == 1
    assert "fanout: the macro-F1 of functions:always is 0.3333, below 0.5\n" in done.stderr
    done = fanout("eval", "latest", "--label", "mood", "--json")
    assert json.loads(done.stdout)["evaluation"]["documents"] == 5
    done = fanout("eval", "latest", "--label", "mod")
    assert (done.status, done.stdout) == (2, "")
    assert (
        "--label: there is no column 'mod'; did you mean mood? known: gold, mood, stars"
        in done.stderr
    )


def test_a_run_with_labels_says_its_accuracy_and_still_prints_its_answer(fanout, here, job):
    (here / "schema.json").write_text(json.dumps({
        "type": "object", "required": ["mood", "stars"],
        "properties": {"mood": {"type": "string"}, "stars": {"type": "integer"}},
    }))  # fmt: skip
    (here / "job.yaml").write_text(
        "inputs: in.csv\nmodel: functions:fields\nprompt: '{input}'\nschema: schema.json\n"
        "labels: {mood: mood, stars: stars}\nreduce: concat\n"
    )
    done = fanout("run", "job.yaml")
    assert done.stdout.startswith("## in.csv:2")
    assert "accuracy of mood: 1.000 (0.566 to 1.000), 5 of 5 answers right\n" in done.stderr
    assert "accuracy of stars: 0.800 (0.376 to 0.964), 4 of 5 answers right\n" in done.stderr
    record = json.loads(fanout("results", "latest", "--json").stdout)
    assert [one["correct"] for one in record["evaluation"]["variants"]] == [5, 4]
    done = fanout("eval", "job.yaml", "--label", "mood", "-q", "--fail-under", "1")
    assert (done.status, done.stderr) == (0, ""), "an option wins over the labels of the file"
    assert done.stdout.splitlines()[1].split()[:3] == ["functions:fields", "5", "100%"]
    # A prompt that has the right answer in it is said to have it.
    done = fanout("run", "job.yaml", "-p", "{input} {mood}", "-q")
    assert "warning: prompt: {mood} is the column of the right answers" in done.stderr


def test_what_cannot_be_evaluated_is_refused_before_a_call(fanout, here, job):
    for arguments, said in {
        ("in.csv", "--label", "gold"): "prompt: is required",
        ("in.csv", "-p", "{input}", "--label", "gld"): (
            "--label: there is no column 'gld'; did you mean gold? known: gold, mood, stars"
        ),
    }.items():
        done = fanout("eval", *arguments, FANOUT_MODEL="fake")
        assert (done.status, done.stdout) == (2, "")
        assert said in done.stderr
