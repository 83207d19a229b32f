"""Looking at runs and at a fleet from the command line, as a person and as a program does."""

from __future__ import annotations

import json
import os
import pty
import subprocess

import pytest

from fanout import Client

from .conftest import FANOUT

pytestmark = pytest.mark.acceptance

MODEL = "fake?fail_rate=0.3&fail_kind=timeout,server_error&latency_s=0.01"
JOB = {"model": MODEL, "prompt": "{input}", "retries": {"max_attempts": 1}}


@pytest.fixture
def run(broker_url, start_worker, monkeypatch):
    """A run with failures that has ended, and a user who has its broker in the environment."""
    monkeypatch.setenv("FANOUT_BROKER_URL", broker_url)
    start_worker("--concurrency", "8")
    with Client(broker_url) as client:
        run = client.submit(JOB, [f"text {n}" for n in range(60)])
        run.wait(60)
        yield run


def objects(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_watching_agrees_with_the_result_to_the_last_branch(fanout, run):
    result = run.result()
    *_, last = objects(fanout("watch", run.run_id, "--json"))
    assert last["succeeded"] == sum(output is not None for output in result.outputs)
    assert last["failed"] == len(result.errors)
    assert sum(last["errors"].values()) == len(result.errors)
    assert last["stages"] == [
        {
            "stage": 0,
            "total": 60,
            "succeeded": last["succeeded"],
            "failed": last["failed"],
            "done": 60,
        }
    ]
    assert last["latency"]["p50_s"] > 0
    assert last["usage"]["calls"] == result.usage.calls


def test_a_terminal_gets_a_live_view(fanout, broker_url, run):
    with Client(broker_url) as client:
        slow = client.submit(
            {"model": "fake?latency_s=0.3", "prompt": "{input}"}, [f"t{n}" for n in range(60)]
        )
    master, slave = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "90", "LINES": "40"}
    with subprocess.Popen(
        [FANOUT, "watch", slow.run_id], stderr=slave, stdout=subprocess.DEVNULL, env=env
    ) as process:
        os.close(slave)
        shown = _read(master)
    os.close(master)
    assert process.returncode == 0
    assert "\x1b[J" in shown
    for part in ("branches  [", "speed ", "latency   p50", "queues ", "workers   1, 8 of 8 places"):
        assert part in shown
    assert "succeeded: 60 of 60 branches (100.0%)" in shown.rsplit("\x1b[J", 1)[1]


def _read(master: int) -> str:
    parts = []
    while True:
        try:
            part = os.read(master, 65_536)
        except OSError:
            # The other end is closed.
            break
        if not part:
            break
        parts.append(part)
    return b"".join(parts).decode()


def test_a_run_is_known_by_what_its_id_begins_with(fanout, broker_url, run):
    with Client(broker_url) as client:
        others = [client.submit(JOB, ["x"]) for _ in range(40)]
    status = fanout("status", run.run_id[:7], "--json")
    assert objects(status)[0]["run_id"] == run.run_id
    assert objects(fanout("status", "latest", "--json"))[0]["run_id"] == others[-1].run_id
    firsts = [one.run_id[0] for one in (run, *others)]
    twice = next(first for first in firsts if firsts.count(first) > 1)
    refused = fanout("cancel", twice)
    assert (refused.status, refused.stdout) == (2, "")
    assert f"runs have ids that begin with '{twice}'" in refused.stderr
    unknown = fanout("status", "uuuu")
    assert (unknown.status, unknown.stdout) == (1, "")
    assert "no run 'uuuu' is known" in unknown.stderr


def test_errors_can_be_narrowed_and_summed_up(fanout, run):
    kinds = run.status().errors
    timeouts = objects(fanout("errors", run.run_id, "--kind", "timeout", "--json"))
    assert len(timeouts) == kinds["timeout"]
    assert {row["kind"] for row in timeouts} == {"timeout"}
    assert len(objects(fanout("errors", run.run_id, "--limit", "2", "--json"))) == 2
    sums = objects(fanout("errors", run.run_id, "--summary", "--json"))
    assert {row["kind"]: row["count"] for row in sums} == dict(kinds)
    assert all(row["example"]["kind"] == row["kind"] for row in sums)


def test_runs_are_narrowed_and_limited(fanout, broker_url, run):
    with Client(broker_url) as client:
        cancelled = client.submit(JOB, ["x"])
        cancelled.cancel()
        cancelled.wait(30)
    shown = objects(fanout("runs", "--status", "succeeded", "--json"))
    assert [row["run_id"] for row in shown] == [run.run_id]
    newest = fanout("runs", "--limit", "1")
    assert newest.stdout.startswith(cancelled.run_id)
    assert "--limit 0 lists all" in newest.stderr


def test_workers_are_listed(fanout, run):
    [worker] = objects(fanout("workers", "--json"))
    assert (worker["concurrency"], worker["in_flight"]) == (8, 0)
    assert worker["name"] in fanout("workers").stdout


def test_what_steers_answers_with_one_object(fanout, run, here):
    (here / "in.txt").write_text("text")
    submitted = fanout("submit", "in.txt", "-m", "fake?latency_s=20", "-p", "{input}", "--json")
    [made] = objects(submitted)
    run_id = made["run_id"]
    assert (made["total"], submitted.stderr.splitlines()[0]) == (1, run_id)
    for command, fields in [
        ("pause", {"changed": True, "status": "paused"}),
        ("pause", {"changed": False, "status": "paused"}),
        ("unpause", {"changed": True, "status": "running"}),
    ]:
        assert objects(fanout(command, run_id, "--json")) == [{"run_id": run_id, **fields}]
    [cancelled] = objects(fanout("cancel", run_id, "--json"))
    assert (cancelled["run_id"], cancelled["changed"]) == (run_id, True)
    fanout("watch", run_id)
    [retried] = objects(fanout("retry", run.run_id, "--json"))
    assert retried["branches"] > 0
    [resumed] = objects(fanout("resume", run.run_id, "--json"))
    assert resumed["run_id"] == run.run_id
    assert objects(fanout("heal", "--json"))[0].keys() == {"steps"}
    assert objects(fanout("delete", run_id, "--json")) == [{"run_id": run_id, "deleted": True}]


def complete(fanout, *words):
    """Ask as bash does when Tab is pressed behind the last word."""
    env = {"_FANOUT_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(("fanout", *words))}
    done = fanout(**env, COMP_CWORD=str(len(words)))
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_a_shell_completes_commands_options_and_runs(fanout, run):
    assert complete(fanout, "st") == ["status"]
    assert complete(fanout, "errors", "--su") == ["--summary"]
    assert complete(fanout, "errors", "x", "--kind", "time") == ["timeout", "time_limit"]
    assert complete(fanout, "status", run.run_id[:2]) == [run.run_id]


def test_a_shell_does_not_wait_for_a_server_that_is_away(fanout):
    env = {
        "FANOUT_BROKER_URL": "redis://127.0.0.1:1/0",
        "COMP_WORDS": "fanout status ",
        "COMP_CWORD": "2",
    }
    done = fanout(**env, _FANOUT_COMPLETE="bash_complete", timeout_s=20)
    assert (done.stdout.strip(), done.stderr) == ("", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(fanout, shell):
    assert "_FANOUT_COMPLETE" in fanout("completion", shell).stdout
