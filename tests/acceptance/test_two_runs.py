"""One run after another: the outputs of the first are the input of the second."""

from __future__ import annotations

import json
import re

import pytest

from fanout import ParallelCalls

ROWS = [
    ("r1", 2, "bad, thing"),
    ("r2", 5, "good"),
    ("r3", 1, "awful"),
    ("r4", 4, "fine"),
    ("r5", "", ""),
]
ASK = ("-m", "fake?answer=yes", "-p", "{input}")


def write_reviews(here):
    lines = ["id,stars,text", *(f'{name},{stars},"{text}"' for name, stars, text in ROWS)]
    (here / "reviews.csv").write_text("\n".join(lines) + "\n")


def outputs(folder):
    return [json.loads(line) for line in (folder / "outputs.jsonl").read_text().splitlines()]


def run_id(done):
    (found,) = re.findall(r"^run (\w{8}) ", done.stderr, re.MULTILINE)
    return found


@pytest.fixture(params=["embedded", "fleet"])
def place(request, monkeypatch):
    """Where runs are: at home, or on a broker with a worker."""
    if request.param == "fleet":
        url = request.getfixturevalue("broker_url")
        request.getfixturevalue("start_worker")()
        monkeypatch.setenv("FANOUT_BROKER_URL", url)
    return request.param


def test_a_run_takes_the_outputs_of_another(fanout, here, place):
    write_reviews(here)
    score = "fake?answer=%7B%22score%22:%203,%20%22id%22:%20%22x%22%7D"
    first = fanout(
        "run", "reviews.csv", "-m", score, "-p", "Score {input}", "--output-format", "json",
        "--id-column", "id",
    )  # fmt: skip
    assert "skipping r5: the document is empty (reviews.csv:6)" in first.stderr
    one = run_id(first)
    # What it lacks is a warning, and refused where all is wanted.
    refused = fanout("run", f"run:{one[:6]}", *ASK, "--strict")
    assert refused.status == 2
    assert f"strict: run:{one}: 1 of 5 branches have no output, and are left out" in refused.stderr
    # Its columns, its texts and the fields of its answers are columns.
    prompt = "{text} {stars} {id} {score} {output.id} {document} {input}"
    second = fanout(
        "run", "run:latest", "-m", "fake", "-p", prompt, "--where", "stars != 5 and score = 3",
        "--limit", "2", "--out", "two",
    )  # fmt: skip
    assert second.status == 0, second.stderr
    assert "1 of 5 branches have no output" in second.stderr
    assert "taken: the first 2 documents of those that meet where (3 read)" in second.stderr
    rows = outputs(here / "two")
    assert [(row["document"], row["id"], row["text"]) for row in rows] == [
        ("r1", "r1", "bad, thing"),
        ("r3", "r3", "awful"),
    ]
    assert [row["score"] for row in rows] == [3, 3]
    assert json.loads(rows[0]["column.output"])["score"] == 3
    # The same input again is the same; another is not.
    two = run_id(second)
    same = fanout("resume", two, f"run:{one}")
    assert (same.status, "there is nothing to resume" in same.stderr) == (0, True)
    other = fanout("resume", two, f"run:{two}")
    assert other.status != 0
    assert "takes no further input" in other.stderr
    # A third, in Python, beside a file and grouped by the documents of the first.
    (here / "more.jsonl").write_text('{"id": "r1", "output": "more", "stars": 1}\n')
    with ParallelCalls("fake?answer=ok") as runner:
        third = runner.run(
            inputs=[f"run:{two}", "more.jsonl"],
            branch_prompt="{input} {stars}",
            text_column="output",
            id_column="id",
            reduce="vote",
            group_by="document",
        )
    assert {name: vote["votes"] for name, vote in third.aggregated.items()} == {
        "r1": {"ok": 2},
        "r3": {"ok": 1},
    }
    # A job file names runs as the command line does.
    (here / "jobs").mkdir()
    (here / "jobs" / "job.yaml").write_text(
        f"{{inputs: ['run:{one}', more.jsonl], model: fake, prompt: '{{input}}', sample: 3, seed: 7}}"
    )
    (here / "jobs" / "more.jsonl").write_text('{"text": "x", "output": "more"}\n')
    job = fanout("run", "jobs/job.yaml", "--text-column", "output")
    assert job.status == 0, job.stderr
    assert "taken: 3 of 5 documents" in job.stderr
    # There is none, none any more, or it is elsewhere.
    assert fanout("delete", two).status == 0
    elsewhere = "found without one only" if place == "fleet" else "is found with its broker"
    for name in (two, "nope"):
        gone = fanout("run", f"run:{name}", *ASK)
        assert gone.status == 2
        assert f"run:{name}: no run '{name}' is" in gone.stderr
        assert elsewhere in gone.stderr


def test_a_run_that_has_not_ended_is_no_input_yet(fanout, here, broker_url, monkeypatch):
    write_reviews(here)
    monkeypatch.setenv("FANOUT_BROKER_URL", broker_url)
    submitted = fanout("submit", "reviews.csv", *ASK)
    one = submitted.stdout.strip()
    done = fanout("run", f"run:{one}", *ASK)
    assert done.status == 2
    assert (
        f"run:{one}: has not ended (running, 0 of 5 branches done): `fanout watch {one}`"
        in done.stderr
    )
    assert fanout("cancel", one).status == 0


@pytest.mark.parametrize(
    ("prompt", "status", "words"),
    [
        (("-p", "{input} {index}"), 2, "{index} is not clear: the input has a column of this name"),
        (("-p", "{input} {column.index} {fanout.index}"), 0, "succeeded: 2 of 2"),
        (("-p", "{input}", "--reduce", "vote", "--group-by", "document"), 2,
         "--group-by: 'document' is not clear"),
        # The names of an aggregate prompt are its own: columns have no part in them.
        (("-p", "{input} {count} {group}", "--aggregate", "{count} {group} {failed} {input}"), 0,
         "succeeded"),
        (("-p", "{input}", "--aggregate", "{index} {input}"), 2,
         "--aggregate: there is no {index}; known: {count}"),
        (("-p", "{input}", "--where", "column.index = 7"), 0, "taken: 1 of 2 documents"),
    ],
)  # fmt: skip
def test_a_column_that_is_called_like_a_name_of_fanouts_own(fanout, here, prompt, status, words):
    names = ["text", "index", "pages", "document", "group", "count", "aspect", "sample", "headings"]
    lines = [",".join(names), *(",".join([f"t{at}", *"7" * 8]) for at in range(2))]
    (here / "a.csv").write_text("\n".join(lines).replace("t1,7", "t1,8"))
    done = fanout("run", "a.csv", "-m", "fake?answer=yes", *prompt)
    assert done.status == status, done.stderr
    assert words in done.stderr
