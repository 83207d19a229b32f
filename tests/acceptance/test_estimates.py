"""What a job costs is known before it is run: estimate, dry run, trial, and the question."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from typing import Any

import pytest

from fanout import Client, ParallelCalls

FANOUT = [sys.executable, "-c", "from fanout.cli.main import main; main()"]
JOB = ["--prompt", "{index}: {input}"]
DEAR = ["--price", "input_mtok=900000", "--price", "output_mtok=900000"]


def echo(prompt: str) -> str:
    """Answer with the prompt."""
    return prompt


@pytest.fixture
def home(here, monkeypatch):
    monkeypatch.delenv("FANOUT_BROKER_URL", raising=False)
    rows = "".join(f"row {at},good\n" for at in range(40))
    (here / "in.csv").write_text(f"text,mood\n{rows}")
    return here


@pytest.fixture
def command(home, fanout):
    """Run the command line; what is asked of it succeeds."""

    def run(*arguments):
        done = fanout(*arguments, timeout_s=120)
        assert done.status == 0, done.stderr
        return done

    return run


def test_an_estimate_and_a_dry_run_make_no_run(command):
    job = ["in.csv", "--model", "openai/gpt-5-mini", *JOB, "--max-tokens", "20"]
    found = json.loads(command("estimate", *job, "--json").stdout)
    assert (found["documents"], found["branches"]) == (40, 40)
    assert found["prompt"].startswith("0: <document id=")
    assert found["prompt"].splitlines()[1] == "row 0"
    assert [one["lane"] for one in found["lanes"]] == ["realtime", "flex", "batch"]
    assert json.loads(command("run", *job, "--dry-run", "--json").stdout) == found
    shown = command("run", *job, "--dry-run").stdout
    assert "40 documents, 40 chunks, 40 branches" in shown
    assert f"first prompt:\n{found['prompt']}" in shown
    assert command("runs").stdout == "", "there was no run"


def test_a_trial_runs_a_sample_with_the_prompts_of_the_job(command):
    job = ["in.csv", "--model", "fake?cache=1", *JOB, "--seed", "7", *DEAR]
    first = json.loads(command("trial", *job, "--sample", "5", "--json", "-q").stdout)
    assert (first["chunks"], first["succeeded"]) == (5, 5)
    assert first["estimate"]["branches"] == 40
    tokens = first["input_tokens"]
    assert tokens["low"] <= tokens["value"] <= tokens["high"]
    assert tokens["value"] == pytest.approx(40 * 3, rel=0.3)
    assert first["cached"] == 0
    again = json.loads(command("trial", *job, "--sample", "5", "--json", "-q").stdout)
    assert (again["cached"], again["cost_usd"]) == (5, first["cost_usd"])
    learnt = [one["estimate"]["learnt_calls"] for one in (first, again)]
    assert learnt == [0, 5], "also what the last calls of a worker have shown"
    picked = [one["document"] for one in first["outputs"]]
    assert [one["document"] for one in again["outputs"]] == picked, "the same seed, the same sample"
    lines = command("run", *job, "--stream", "-q").stdout.splitlines()
    whole = {one["document"]: one["output"] for one in map(json.loads, lines)}
    for one in first["outputs"]:
        assert one["output"] == whole[one["document"]], "the same prompt, by its index in the job"
    paid = {one["document"] for one in map(json.loads, lines) if not one["cached"]}
    assert paid == whole.keys() - set(picked), "the run does not pay again for what the trial did"


def test_a_cost_above_the_threshold_is_told_before(command, monkeypatch):
    job = ["in.csv", "--model", "fake", *JOB, "--max-tokens", "20", *DEAR]
    done = command("run", *job)
    assert "estimate: 40 branches" in done.stderr
    assert "warning" not in done.stderr
    assert "row 0" not in done.stderr
    monkeypatch.setenv("FANOUT_CONFIRM_USD", "1e9")
    assert "estimate:" not in command("run", *job).stderr
    assert "estimate:" not in command("run", "in.csv", "--model", "fake", *JOB).stderr


def answered(home, words, *, answer=None):
    """What a terminal shows of a command whose question is answered, and its exit status."""
    primary, secondary = pty.openpty()
    with subprocess.Popen(
        [*FANOUT, *words], cwd=home, stdin=secondary, stderr=secondary, stdout=subprocess.PIPE
    ) as process:
        os.close(secondary)
        seen = b""
        # The other end is closed where reading fails.
        with contextlib.suppress(OSError):
            while more := os.read(primary, 65_536):
                seen += more
                if answer is not None and b"run it? [y/N]:" in seen:
                    os.write(primary, answer)
                    answer = None
        os.close(primary)
        process.stdout.read()
        return seen.decode(), process.wait(120)


@pytest.mark.parametrize("asks", ["run", "eval"])
def test_a_terminal_is_asked_before_much_is_spent(home, command, asks):
    labels = [] if asks == "run" else ["--label", "mood"]
    job = [asks, "in.csv", "--model", "fake", *JOB, "--max-tokens", "9", *DEAR, *labels]
    shown, status = answered(home, job, answer=b"n\n")
    assert (status, shown.count("run it?")) == (1, 1)
    assert "estimate: 40 branches" in shown
    assert command("runs").stdout == "", "there was no run"
    shown, status = answered(home, job, answer=b"y\n")
    assert (status, shown.count("run it?")) == (0, 1)
    shown, status = answered(home, [*job, "--yes"])
    assert (status, shown.count("run it?"), shown.count("estimate: 40")) == (0, 0, 1)


def test_a_submission_says_what_it_costs_and_never_asks(home, broker_url):
    fleet = ["--broker-url", broker_url]
    job = ["submit", "in.csv", "--model", "fake", *JOB, "--max-tokens", "9", *DEAR, *fleet]
    shown, status = answered(home, job)
    assert (status, "run it?" in shown) == (0, False)
    assert "estimate: 40 branches" in shown
    assert "enqueued" in shown
    shown, status = answered(home, [*job, "-q"])
    assert (status, shown) == (0, "")


def test_in_python(home):
    chunks = [f"text {at}" for at in range(30)]
    with ParallelCalls(llm=echo) as runner:
        found = runner.estimate(chunks, "{index} {input}")
        assert (found.branches, found.prompt) == (30, "0 text 0")
        trial = runner.trial(chunks, "{index} {input}", size=4)
        assert trial.succeeded == trial.chunks == 4
        answers = set(runner.run(chunks, "{index} {input}").outputs)
        # The prompt that is shown is the one that is sent, in its own order.
        job: dict[str, Any] = {
            "aspects": {"a": "A {input}", "b": "B {input}"},
            "prompt_order": "document_first",
        }
        shown = runner.estimate(chunks[:1], **job).prompt
        assert shown == runner.run(chunks[:1], **job).outputs[0]
        assert shown.startswith("<document>\ntext 0\n")
    with Client() as client:
        tried = {one.output for one in client.run(trial.run_id).outcomes()}
    assert tried <= answers
    assert len(tried) == 4
