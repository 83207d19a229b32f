"""A run's life, from submission to deletion, as a user steers it from the command line."""

from __future__ import annotations

import json
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
from click.testing import CliRunner

from fanout import Client
from fanout.cli.main import _COMMANDS, _GROUPS, cli
from tests.integration.conftest import wait_for

ASK = ("-p", "{input}")
CONTRACT = {
    "run_id", "status", "total", "done", "succeeded", "failed", "errors", "usage", "created_at",
    "elapsed_s",
}  # fmt: skip


@pytest.fixture(autouse=True)
def fleet(broker_url, start_worker, monkeypatch):
    """A worker whose reaper looks often, and the environment of a user who has a fleet."""
    monkeypatch.setenv("FANOUT_BROKER_URL", broker_url)
    monkeypatch.setenv("FANOUT_REAPER_INTERVAL_S", "0.2")
    monkeypatch.setenv("FANOUT_STALL_S", "1")
    worker = start_worker("--concurrency", "8")
    with Client(broker_url) as client:
        yield client
    worker.kill()


@pytest.fixture
def submit(fanout, here):
    def submit(*options, count=20, model="fake"):
        rows = (json.dumps({"text": f"t{i}"}) for i in range(count))
        (here / "in.jsonl").write_text("\n".join(rows))
        done = fanout("submit", "in.jsonl", "-m", model, *ASK, *options)
        assert done.status == 0, done.stderr
        [run_id] = done.stdout.splitlines()
        return run_id

    return submit


def status(fanout, run_id):
    return json.loads(fanout("status", run_id, "--json").stdout)


def twice_at_once(fanout, *arguments):
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(fanout, *arguments) for _ in range(2)]
        return sorted((one.result() for one in both), key=lambda done: done.stdout)


def test_submit_returns_and_watch_results_and_status_tell_the_rest(fanout, submit, here):
    run_id = submit("--reduce", "vote", model="fake?answer=yes&latency_s=0.05", count=40)
    watched = fanout("watch", run_id)
    assert (watched.status, watched.stdout) == (0, "")
    assert f"run {run_id} succeeded: 40 of 40 branches (100.0%)" in watched.stderr
    record = status(fanout, run_id)
    assert record.keys() >= CONTRACT
    assert (record["status"], record["total"], record["done"]) == ("succeeded", 40, 40)
    assert "succeeded: 40 of 40" in fanout("status", run_id).stdout
    results = fanout("results", run_id, "--out", "out")
    assert results.status == 0
    assert json.loads(results.stdout)["votes"] == {"yes": 40}
    assert json.loads((here / "out" / "run.json").read_text())["run_id"] == run_id
    assert json.loads(fanout("results", run_id, "--json").stdout)["aggregated"]["winner"] == "yes"


def test_errors_are_listed_and_retried_by_kind(fanout, submit):
    model = "fake?fail_rate=0.5&fail_kind=server_error"
    run_id = submit("--max-attempts", "1", model=model, count=60)
    assert fanout("watch", run_id).status == 0
    failed = status(fanout, run_id)["failed"]
    assert 0 < failed < 60
    lines = fanout("errors", run_id).stdout.splitlines()
    assert len(lines) == failed
    assert lines[0].split("\t")[1:3] == [f"in.jsonl:{int(lines[0].split()[0]) + 1}", "server_error"]
    rows = [json.loads(line) for line in fanout("errors", run_id, "--json").stdout.splitlines()]
    assert {row["kind"] for row in rows} == {"server_error"}
    assert len(rows) == failed
    assert fanout("retry", run_id, "--kind", "timeout").stdout.startswith("no branch of run ")
    assert (
        fanout("retry", run_id).stdout == f"{failed} branches of run {run_id} are processed again\n"
    )
    fanout("watch", run_id)
    record = status(fanout, run_id)
    assert record["done"] == 60
    assert record["usage"]["calls"] == 60 + failed


def test_a_run_is_paused_and_goes_on_and_saying_it_twice_changes_nothing(fanout, submit, fleet):
    # Longer than it takes to start two commands on a busy machine.
    run_id = submit(model="fake?latency_s=0.2", count=300)
    assert [d.stdout for d in twice_at_once(fanout, "pause", run_id)] == [
        f"run {run_id} is paused\n",
        f"run {run_id} was paused already\n",
    ]
    run = fleet.run(run_id)
    assert run.status().status == "paused"
    assert fanout("status", run_id).stdout.startswith(f"run {run_id} paused ")
    assert [d.stdout for d in twice_at_once(fanout, "unpause", run_id)] == [
        f"run {run_id} goes on\n",
        f"run {run_id} was not paused\n",
    ]
    assert fanout("watch", run_id).status == 0
    assert run.status().usage.calls == 300


def test_a_cancelled_run_ends_and_keeps_what_finished(fanout, submit, fleet):
    run_id = submit(model="fake?latency_s=0.2", count=1200)
    wait_for(lambda: fleet.run(run_id).status().succeeded >= 1, "a branch is done")
    said = [done.stdout for done in twice_at_once(fanout, "cancel", run_id)]
    second, first = said
    assert first == f"run {run_id} is stopped\n"
    assert second in {
        f"run {run_id} had been stopped\n",
        f"run {run_id} has ended already (cancelled)\n",
    }
    watched = fanout("watch", run_id)
    assert watched.status == 1
    assert "cancelled: " in watched.stderr
    record = status(fanout, run_id)
    assert (record["status"], record["done"]) == ("cancelled", 1200)
    results = fanout("results", run_id)
    assert results.status == 1
    assert len(results.stdout.splitlines()) == record["succeeded"] >= 1
    assert "has not ended" not in results.stderr


def test_ctrl_c_ends_the_watching_and_not_the_run(submit, fanout, popen):
    run_id = submit(model="fake?latency_s=600", count=60)
    watching = popen(
        "fanout", "watch", run_id, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert watching.stderr.readline().startswith("running")
    watching.send_signal(signal.SIGINT)
    _, stderr = watching.communicate(timeout=120)
    assert watching.returncode == 130
    assert f"run {run_id} goes on" in stderr
    assert "Traceback" not in stderr
    assert status(fanout, run_id)["status"] == "running"
    fanout("cancel", run_id)
    assert fanout("watch", run_id).status == 1


@pytest.fixture
def killed(here, fleet, popen):
    """A run whose `fanout submit` was killed for good while it read its 60 MB."""
    text = "x" * 200_000
    rows = [json.dumps(f"line {i} {text}") for i in range(300)]
    (here / "in.jsonl").write_text("\n".join(rows))
    words = ("submit", "in.jsonl", "-m", "fake", *ASK)
    process = popen("fanout", *words, stdout=subprocess.PIPE, text=True)
    run = fleet.run(process.stdout.readline().strip())
    wait_for(lambda: run.status().total > 0, "a shard is enqueued")
    process.kill()
    process.communicate()
    assert run.status().status == "enqueuing"
    assert run.status().total < 300
    return run


def test_a_submission_that_was_killed_is_resumed_from_any_folder(fanout, here, killed, monkeypatch):
    run_id = killed.run_id
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    for done in twice_at_once(fanout, "resume", run_id):
        assert (done.status, done.stdout) == (0, f"{run_id}\n"), done.stderr
    assert fanout("watch", run_id).status == 0
    record = status(fanout, run_id)
    assert (record["total"], record["succeeded"], record["usage"]["calls"]) == (300, 300, 300)
    documents = [branch.document for branch in killed.outcomes()]
    assert documents == [f"in.jsonl:{i + 1}" for i in range(300)], "as they were named"
    again = fanout("resume", run_id)
    assert (again.status, again.stdout) == (0, f"{run_id}\n")
    assert "300 branches are enqueued" in again.stderr


def test_a_resume_with_another_input_is_refused_and_says_where_it_differs(fanout, here, killed):
    run_id, path = killed.run_id, here / "in.jsonl"
    text = path.read_text()
    path.write_text(text.replace("line 7 ", "line seven "))
    done = fanout("resume", run_id)
    assert done.status == 1
    assert "differs at document 'in.jsonl:8'" in done.stderr
    path.unlink()
    done = fanout("resume", run_id)
    assert done.status == 2
    assert "in.jsonl: there is no such file or folder" in done.stderr
    path.write_text(text)
    assert fanout("resume", run_id, "in.jsonl").status == 0
    assert fanout("watch", run_id).status == 0


def test_a_run_whose_submission_was_killed_can_be_cancelled(fanout, killed):
    run_id, total = killed.run_id, killed.status().total
    assert fanout("cancel", run_id).status == 0
    assert fanout("watch", run_id).status == 1
    record = status(fanout, run_id)
    assert (record["status"], record["done"]) == ("cancelled", total)


def test_what_came_from_standard_input_is_resumed_from_there(fanout, fleet):
    text = "".join(f"line {i}\n" for i in range(700))
    done = fanout(
        "submit", "-", "--split", "lines", "-m", "fake", *ASK, stdin=text.encode()
    )  # fmt: skip
    run_id = done.stdout.strip()
    assert fanout("resume", run_id, stdin=text.encode()).status == 0
    assert fanout("watch", run_id).status == 0
    assert status(fanout, run_id)["total"] == 700


def test_no_call_begins_after_the_deadline(fanout, submit):
    # Which is not over before all is submitted on a busy machine.
    run_id = submit("--deadline", "6", "--reduce", "vote", model="fake?latency_s=1", count=600)
    watched = fanout("watch", run_id)
    assert watched.status == 0, watched.stderr
    record = status(fanout, run_id)
    assert record["errors"] == {"expired": 600 - record["succeeded"]}
    assert record["succeeded"] >= 8
    votes = json.loads(fanout("results", run_id).stdout)["votes"]
    assert sum(votes.values()) == record["succeeded"]


def test_runs_are_listed_and_forgotten(fanout, submit):
    first, second = submit(count=1), submit(count=2)
    fanout("watch", first)
    fanout("watch", second)
    lines = fanout("runs").stdout.splitlines()
    assert [line.split()[0] for line in lines] == [second, first]
    assert lines[0].split()[3:6] == ["succeeded", "2/2", "0"]
    assert lines[0].split()[-1] == "fake"
    rows = [json.loads(line) for line in fanout("runs", "--json").stdout.splitlines()]
    assert [row["run_id"] for row in rows] == [second, first]
    assert rows[0].keys() >= CONTRACT
    assert fanout("delete", first).status == 0
    assert fanout("delete", first).status == 1
    assert [line.split()[0] for line in fanout("runs").stdout.splitlines()] == [second]


def test_a_healthy_fleet_has_nothing_to_heal(fanout, submit):
    submit(model="fake?latency_s=0.5", count=100)
    assert fanout("heal").stdout == "nothing was missing\n"


ON_A_RUN = sorted({"results", *_GROUPS["Look"], *_GROUPS["Steer"]} - {"runs", "workers"})
ON_A_FLEET = {"submit": ["a.txt", "-m", "fake", *ASK], "heal": [], "watch": [], "workers": []}


@pytest.mark.parametrize("command", ON_A_RUN)
def test_an_unknown_run_is_one_clear_line(fanout, command):
    done = fanout(command, "nope", *(["0"] if command == "show" else []))
    assert (done.status, done.stdout) == (1, "")
    assert done.stderr == ("fanout: no run 'nope' is known to this broker (it may have expired)\n")


@pytest.mark.parametrize("command", sorted(ON_A_FLEET))
def test_without_a_broker_what_needs_a_fleet_says_what_to_set(fanout, here, command):
    (here / "a.txt").write_text("x")
    done = fanout(command, *ON_A_FLEET[command], FANOUT_BROKER_URL="")
    assert (done.status, done.stdout) == (2, "")
    assert "set FANOUT_BROKER_URL, or give --broker-url" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_running_run_cannot_be_retried(fanout, submit):
    run_id = submit(model="fake?latency_s=30", count=3)
    done = fanout("retry", run_id)
    assert done.status == 1
    assert "has not ended: wait for it, or cancel it, before a retry" in done.stderr
    fanout("cancel", run_id)


def test_help_lists_each_command_with_one_line(fanout):
    lines = [line.strip() for line in fanout("--help").stdout.splitlines()]
    for name, (_, text) in _COMMANDS.items():
        assert f"{name} {text}" in [" ".join(line.split()) for line in lines]
        assert CliRunner().invoke(cli, [name, "--help"]).exit_code == 0
