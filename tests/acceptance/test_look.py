"""Looking at runs and at a fleet from the command line, as a person and as a program does."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import termios
import unicodedata
from collections import Counter
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

import pytest

from fanout import Client
from fanout.core.fleet_records import WorkerRecord
from fanout.core.records import Document, RunStatus
from fanout.stores import RedisStore, connect
from tests.integration.conftest import wait_for
from tests.needs import needs
from tests.servers import ServerProcess

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
        run.wait(120)
        yield run


def objects(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


def agrees(shown, result, reduced):
    """A status agrees with the result to the last branch."""
    branches, *reduce = shown["stages"]
    succeeded = sum(output is not None for output in result.outputs)
    assert (shown["total"], shown["done"]) == (len(result.outputs), len(result.outputs))
    assert (shown["succeeded"], shown["failed"]) == (succeeded, len(result.errors))
    assert shown["errors"] == Counter(error.kind for error in result.errors)
    assert branches == {
        "stage": 0,
        "total": len(result.outputs),
        "succeeded": succeeded,
        "failed": len(result.errors),
        "done": len(result.outputs),
        "kept_truncated": 0,
        "calls": result.usage.calls - reduced,
    }
    assert sum(stage["total"] for stage in reduce) == reduced
    assert all(stage["done"] == stage["total"] for stage in reduce)
    assert sum(stage["failed"] for stage in reduce) == len(result.reduce_errors)
    assert shown["usage"] == result.usage.to_dict()


def test_watching_agrees_with_the_result_to_the_last_branch(fanout, run, broker_url):
    # What fails follows from prompts and seed: two reductions, and not the last one.
    model = MODEL.replace("0.3", "0.2").replace("0.01", "0.3") + "&context_tokens=300&seed=3"
    tree = {"model": model, "aggregate_prompt": "{input}", "aggregate_max_tokens": 20}
    with Client(broker_url) as client:
        texts = [f"text {n} " + "word " * 20 for n in range(80)]
        other = client.submit({**JOB, **tree}, texts)
        lines = objects(fanout("watch", other.run_id, "--json", "--interval", "0.2"))
        result = other.result()
    assert len(lines) > 1
    assert [line["status"] for line in lines].count(result.status) == 1, "once it has ended"
    assert len(lines[-1]["stages"]) == 3, "a tree"
    assert result.reduce_errors
    agrees(lines[-1], result, result.usage.calls - 80)
    assert lines[-1]["speed"]["calls_per_s"] is not None
    # Of a run that ended before it was looked at, too.
    [last] = objects(fanout("watch", run.run_id, "--json"))
    agrees(last, run.result(), 0)
    assert last["latency"]["p50_s"] > 0


SGR = re.compile(r"\x1b\[[\d;]*m")


class Terminal:
    """A command on a terminal: what it shows in the end, and how it ends."""

    def __init__(self, forks, *arguments, columns=90, stdout=None, **env):
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self.process = forks.start(
            "fanout",
            arguments,
            env={**os.environ, "TERM": "xterm", **env},
            cwd=Path.cwd(),
            streams=(slave, slave if stdout is None else stdout.fileno(), slave),
        )
        os.close(slave)
        self._shown = b""

    def read_until(self, part):
        while not re.search(part, self._shown):
            self._shown += os.read(self._master, 65_536)

    def forget(self):
        self._shown = b""

    def end(self):
        """All that was written, once the command has ended."""
        # The other end is closed where reading fails.
        with contextlib.suppress(OSError):
            while more := os.read(self._master, 65_536):
                self._shown += more
        os.close(self._master)
        self.process.wait(120)
        return self._shown.decode().replace("\r\n", "\n")

    @staticmethod
    def last_frame(shown):
        frame = re.split(r"\r(?:\x1b\[2K\x1b\[1A)*\x1b\[2K", shown)[-1]
        return [line.rstrip() for line in SGR.sub("", frame).splitlines()]


@pytest.fixture
def terminal(forks):
    """Start a command on a terminal of its own."""
    return partial(Terminal, forks)


def test_a_terminal_gets_a_live_view_whose_last_frame_is_the_result(broker_url, run, terminal):
    slow = f"{MODEL}&latency_s=0.3"
    with Client(broker_url) as client:
        other = client.submit({**JOB, "model": slow}, [f"t{n}" for n in range(100)])
        # Most of it is left when it is watched, however long a command takes to start.
        other.pause()
        shell = terminal("watch", other.run_id[:6])
        shell.read_until(b"paused")
        other.unpause()
        shown = shell.end()
        status = other.status()
    assert shell.process.returncode == 0
    # A worker says every two seconds how full it is.
    plain = SGR.sub("", shown)
    for pattern in (
        r"speed +\S+ calls/s",
        " · ETA ",
        "queues   control 0",
        r"workers  1 · \d of 8 places",
        r"branches ━+[╺╸]?━* +\d+\.\d%",
    ):
        assert re.search(pattern, plain)
    frame = shell.last_frame(shown)
    assert frame[0].startswith(f"run {other.run_id}  succeeded · {status.elapsed_s:.1f} s  fake?")
    assert frame[1] == f"branches {'━' * 40} 100.0% 100/100 · {status.failed} failed"
    usage = status.usage
    tokens = f"{usage.input_tokens:,} tokens in, {usage.output_tokens:,} out"
    assert frame[3] == f"usage    100 calls · {tokens} · cost $0.00"
    assert sum(map(int, re.findall(r"\d+", frame[4]))) == status.failed
    assert frame[5].startswith(f"run {other.run_id} succeeded: {status.succeeded} of 100 branches")


@pytest.fixture
def job(here):
    """The words of a run that takes a few seconds."""
    (here / "in.jsonl").write_text("".join(f'{{"text": "text {n}"}}\n' for n in range(60)))
    slow = f"{MODEL}&latency_s=0.3"
    words = ("run", "in.jsonl", "-m", slow, "-p", "{input}", "--reduce", "concat")
    return (*words, "--max-attempts", "1")


def test_a_run_has_a_bar_on_a_terminal_and_its_answer_on_standard_output(run, job, here, terminal):
    for columns, env in ((60, {}), (120, {"NO_COLOR": "1"})):
        with (here / "answer").open("w+") as answer:
            shell = terminal(*job, columns=columns, stdout=answer, **env)
            shown = shell.end()
            answer.seek(0)
            assert answer.read().startswith("## in.jsonl:")
        assert shell.process.returncode == 0
        assert bool(SGR.search(shown)) is (not env)
        plain = SGR.sub("", shown)
        bars = re.findall(r"branches (━*[╺╸]?[━┄ ]*) +(\d+\.\d)% (\d+)/60", plain)
        assert len(bars) > 2
        assert [float(share) for _, share, _ in bars] == sorted(float(bar[1]) for bar in bars)
        assert re.search(r"running · [\d.]+ calls/s · ETA \d", plain)
        lines = re.split(r"[\r\n]|\x1b\[2K|\x1b\[1A", plain)
        drawn = [line for line in lines if line.startswith(("branches", "running"))]
        assert max(map(len, drawn)) <= columns
        # Nothing is left of the bar, and the cursor was never hidden.
        assert re.search(r"(\x1b\[1A\x1b\[2K){2,}note: ", plain)
        assert "\x1b[?25" not in shown
        assert re.findall(r"^run \w+ succeeded: .*", plain, re.MULTILINE)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_takes_the_bar_away_and_leaves_the_terminal_in_order(
    run, job, here, number, terminal
):
    (here / "in.jsonl").write_text("".join(f'{{"text": "text {n}"}}\n' for n in range(600)))
    shell = terminal(*job, columns=60)
    shell.read_until(rb"\d calls/s")
    shell.process.send_signal(number)
    shell.read_until(b"stopping: what has finished is kept")
    shell.process.send_signal(number)
    shown = shell.end()
    assert shell.process.returncode == 130
    assert "Traceback" not in shown
    # The last that it does to the terminal is to take the bar away. The run may have ended by then.
    if "quitting at once" in shown:
        assert re.search(r"quitting at once[^\x1b]*(\n.*)+(\x1b\[1A\x1b\[2K){2,}$", shown)


def test_a_terminal_without_colours_or_without_a_cursor_gets_none(run, job, terminal):
    with_cursor = [("watch", run.run_id)]
    for words in [*with_cursor, ("status", run.run_id), ("runs",), ("workers",), ("doctor",)]:
        plain = terminal(*words, TERM="dumb").end()
        assert "\x1b" not in plain
        assert "\x1b" in terminal(*words).end()
        without = terminal(*words, NO_COLOR="1").end()
        assert not SGR.search(without)
        assert ("\x1b" in without) is (words in with_cursor)
    assert "\x1b" not in terminal(*job, TERM="dumb").end()


def test_a_terminal_of_a_fleet_and_ctrl_c(broker_url, run, terminal):
    job = {"model": "fake?latency_s=600", "prompt": "{input}"}
    with Client(broker_url) as client:
        other = client.submit(job, [f"t{n}" for n in range(60)])
        for words, part, ending in [
            ([], b"workers", []),
            (["latest"], b"branches", [f"run {other.run_id} goes on"]),
        ]:
            shell = terminal("watch", *words)
            shell.read_until(part)
            shell.process.send_signal(signal.SIGINT)
            shown = shell.end()
            assert shell.process.returncode == 130
            assert other.run_id in shown
            assert "Traceback" not in shown
            assert all(text in shown for text in ending)
        assert other.status().status == "running"
        other.cancel()
        other.wait(120)
    table = SGR.sub("", terminal("runs", "--limit", "1").end()).splitlines()
    assert table[0].split() == ["RUN", "CREATED", "STATUS", "DONE", "FAILED", "ELAPSED", "MODEL"]
    assert table[1].split()[3:6] == ["cancelled", "60/60", "60"]
    assert table[2:] == ["and 1 more: --limit 0 lists all"]


def test_watching_a_fleet_outlasts_its_server(here, monkeypatch, terminal):
    server = ServerProcess(here.parent / "server")
    try:
        shell = terminal("watch", "--interval", "0.1", FANOUT_BROKER_URL=server.url)
        shell.read_until(b"none")
        server.kill()
        shell.read_until(b"the broker does not answer")
        shell.forget()
        server.start()
        shell.read_until(rb"workers[^\n]* none *\r\x1b")
        shell.process.send_signal(signal.SIGINT)
        # It goes on to draw until it is read to its end: a terminal that nobody reads would hold it up.
        shell.end()
        assert shell.process.returncode == 130
        json_lines = subprocess.Popen(
            [FANOUT, "watch", "--json", "--broker-url", server.url],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        first = json.loads(json_lines.stdout.readline())
        assert (first["workers"], first["active"]) == ([], [])
        assert first["speed"]["calls_per_s"] is None
        json_lines.send_signal(signal.SIGINT)
        json_lines.wait(120)
        assert json_lines.returncode == 130
        json_lines.stdout.close()
    finally:
        server.kill()


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
    named = [one.run_id for one in (run, *others) if one.run_id[0] == twice]
    assert [run_id for run_id in named if f"{run_id} (" not in refused.stderr] == []
    empty = fanout("cancel", "")
    assert (empty.status, empty.stdout) == (1, "")
    unknown = fanout("status", "uuuu")
    assert (unknown.status, unknown.stdout) == (1, "")
    assert "no run 'uuuu' is known" in unknown.stderr


def test_errors_can_be_narrowed_and_summed_up(fanout, run):
    kinds = run.status().errors
    timeouts = objects(fanout("errors", run.run_id, "--kind", "timeout", "--json"))
    assert len(timeouts) == kinds["timeout"]
    assert {row["kind"] for row in timeouts} == {"timeout"}
    limited = fanout("errors", run.run_id, "--limit", "2", "--json")
    assert len(objects(limited)) == 2
    assert limited.stderr == f"and {run.status().failed - 2} more\n"
    sums = objects(fanout("errors", run.run_id, "--summary", "--json"))
    assert {row["kind"]: row["count"] for row in sums} == dict(kinds)
    assert all(row["example"]["kind"] == row["kind"] for row in sums)
    for line in fanout("errors", run.run_id, "--summary").stdout.splitlines():
        count, kind, *example = line.split("\t")
        assert (kind in dict(kinds), int(count) > 0, kind in example) == (True, True, False)


def test_runs_are_narrowed_and_limited(fanout, broker_url, run):
    with Client(broker_url) as client:
        cancelled = client.submit({**JOB, "model": "fake?latency_s=60"}, ["x"])
        cancelled.cancel()
        cancelled.wait(120)
    [shown] = objects(fanout("runs", "--status", "succeeded", "--json"))
    assert (shown["run_id"], shown["model"]) == (run.run_id, MODEL)
    newest = fanout("runs", "--limit", "1")
    assert newest.stdout.startswith(cancelled.run_id)
    assert newest.stderr == "and 1 more: --limit 0 lists all\n"
    assert fanout("runs").stdout.count("\n") == 2


def test_workers_and_queues_are_listed(fanout, broker_url, run):
    with Client(broker_url) as client:
        # What a worker told last may be from within the run.
        wait_for(lambda: client.fleet().in_flight == 0, "the worker says that it is idle")
        wait_for(lambda: client.fleet().leases.taken == 0, "all messages are settled")
    [fleet] = objects(fanout("workers", "--json"))
    [worker] = fleet["workers"]
    assert (worker["concurrency"], worker["in_flight"]) == (8, 0)
    assert [queue["waiting"] for queue in fleet["queues"]] == [0, 0]
    assert fleet["totals"]["succeeded"] == run.status().succeeded
    lines = fanout("workers").stdout.splitlines()
    assert lines[0] == "queues    control 0 · branches 0 · taken 0"
    assert lines[2] == "workers   1 · 0 of 8 places in use"
    assert lines[3].split()[0] == worker["name"]


def test_what_steers_answers_with_one_object(fanout, run, here):
    (here / "in.txt").write_text("text")
    submitted = fanout("submit", "in.txt", "-m", "fake?latency_s=200", "-p", "{input}", "--json")
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


# Sets the clipboard, clears the screen (twice: CSI is one character, too), reads backwards.
HOSTILE = "a\x1b]52;c;cm0=\x07\x1b[2J\x9b2J\u202eb\rc"
OURS = re.compile(r"\x1b\[(?:1A|2K|[\d;]*m)|\r(?=\x1b\[[12][AK])")


def test_nothing_that_others_say_gives_the_terminal_orders(fanout, broker_url, run, here, terminal):
    """Answers, names of documents, models and workers, ids and errors; a pipe gets all as it is."""
    model = f"fake?{urlencode({'answer': HOSTILE + chr(10) + 'fanout: forged'})}#{HOSTILE}"
    with Client(broker_url) as client:
        documents = [Document(name=f"{HOSTILE}\n{n}", index=n, text=str(n)) for n in range(3)]
        merged = client.submit({**JOB, "model": model, "reduce": "concat"}, documents)
        plain = client.submit({**JOB, "model": model}, documents)
        failed = client.submit({**JOB, "model": "fake?fail_rate=1"}, documents)
        for each in (merged, plain, failed):
            each.wait(120)
        store = RedisStore(connect(broker_url))
        store.create_run(HOSTILE, spec=plain.spec.model_dump_json(), created_at=store.now())
        store.end_run(HOSTILE, RunStatus.FAILED, ended_at=store.now(), error=HOSTILE)
        store.worker_alive(WorkerRecord(name=HOSTILE, host=HOSTILE, version=HOSTILE), ttl_s=600)
    (here / "in.txt").write_text("text")
    for words in [
        ("results", merged.run_id), ("results", merged.run_id, "--json"),
        ("results", plain.run_id), ("errors", failed.run_id),
        ("errors", failed.run_id, "--summary"),
        ("errors", failed.run_id, "--json"), ("watch", plain.run_id), ("status", HOSTILE),
        ("status", HOSTILE, "--json"), ("watch", HOSTILE), ("runs",), ("runs", "--json"),
        ("workers",), ("workers", "--json"), ("doctor",), ("probe", "--name", f"{HOSTILE}x"),
        ("report", merged.run_id, "--out", "-"), ("report", merged.run_id, "--json"),
        ("status", f"{HOSTILE}y"), ("retry", "x", "--kind", HOSTILE), (HOSTILE,),
        ("run", f"{HOSTILE}.txt", "--model", "fake", "--prompt", "{input}"),
        ("run", "in.txt", "--model", HOSTILE, "--prompt", "{input}"),
    ]:  # fmt: skip
        shown = OURS.sub("", terminal(*words).end())
        left = [c for c in shown if unicodedata.category(c) in {"Cc", "Cf"} and c not in "\n\t"]
        assert left == [], (words, shown)
        assert "Traceback" not in shown
    piped = fanout("results", merged.run_id).stdout
    assert piped.count(HOSTILE) == 9
    # What a shell would run is no run of fanout's.
    runs = (failed, plain, merged, run)
    for letter in {each.run_id[0] for each in runs}:
        expected = [f"plain,{each.run_id}" for each in runs if each.run_id[0] == letter]

        # It gives up where the answer takes long, as on a busy machine.
        def is_completed(letter=letter, expected=expected):
            return complete(fanout, "status", letter, FANOUT_BROKER_URL=broker_url) == expected

        wait_for(is_completed, f"these are completed: {expected}")


def complete(fanout, *words, **env):
    """Ask as bash does when Tab is pressed behind the last word."""
    asked = {"_FANOUT_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(("fanout", *words))}
    done = fanout(**asked, COMP_CWORD=str(len(words)), **env)
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_itself_completes_a_run(fanout, run):
    needs("bash")
    script = """
        eval "$("$0" completion bash)"
        COMP_WORDS=(fanout cancel "$1") COMP_CWORD=2
        _fanout_completion "$0" "$1" cancel
        echo "${COMPREPLY[@]}"
        complete -p fanout
    """

    def completed():
        done = subprocess.run(
            ["bash", "--norc", "-c", script, FANOUT, run.run_id[:3]],
            capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
        assert done.stderr == ""
        assert "-F _fanout_completion fanout" in done.stdout
        # It gives up where the answer takes long, as on a busy machine.
        return done.stdout.splitlines()[0] == run.run_id

    wait_for(completed, "the run is completed", timeout_s=120)


def test_a_shell_completes_commands_and_does_not_wait_for_a_server_that_hangs(fanout):
    assert complete(fanout, "st") == ["plain,status"]
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"redis://127.0.0.1:{deaf.getsockname()[1]}/0"
        assert complete(fanout, "status", "a", FANOUT_BROKER_URL=url) == []


def test_each_shell_has_a_script(fanout):
    for shell in ("bash", "zsh", "fish"):
        done = fanout("completion", shell, PATH="")
        assert (done.status, done.stderr) == (0, "")
        assert "_FANOUT_COMPLETE" in done.stdout
