"""Embedded runs: no paid answer is lost if any process dies, and no other user gets in."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from subprocess import DEVNULL, PIPE

import psutil
import pytest

from tests.fences import bare
from tests.scripted_provider import openai_reply

from .conftest import FANOUT

ASK = ("-p", "{input}", "-m")


def write_input(here, count):
    lines = (json.dumps({"text": f"t{i}"}) for i in range(count))
    (here / "in.jsonl").write_text("\n".join(lines))


@pytest.fixture
def popen():
    """Start what is killed here as a user does, so that it shares with others only what it would."""

    def start(program, *words, **options):
        command = [FANOUT] if program == "fanout" else [sys.executable]
        return subprocess.Popen([*command, *words], **options)

    return start


@pytest.fixture
def begin(here, popen):
    """Start a run."""

    def start(count, *options, model="fake?latency_s=0.2"):
        write_input(here, count)
        words = ("run", "in.jsonl", *ASK, model, *options)
        return popen("fanout", *words, stdout=PIPE, stderr=PIPE, text=True)

    return start


def until(check, what, *, process=None, timeout_s=120):
    end = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < end, what
        if process is not None:
            assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def of_state(state_dir):
    """The keeper and the server of a folder."""
    everybody = psutil.process_iter(["cmdline"])
    return [each for each in everybody if str(state_dir) in " ".join(each.info["cmdline"] or ())]


def keepers_of(state_dir):
    # As they were listed: with a keeper, its server dies too.
    return [each for each in of_state(state_dir) if "keeper.py" in " ".join(each.info["cmdline"])]


def words_of(process):
    """The name and the first words of a process; nothing of one that has ended meanwhile."""
    with suppress(psutil.NoSuchProcess):
        return process.name() + " ".join(process.cmdline()[:5])
    return ""


def everything(process, state_dir):
    own = psutil.Process(process.pid)
    return [*{own, *own.children(recursive=True), *of_state(state_dir)}]


def kill_all(processes):
    """Kill processes, some of which end as soon as they see another one die."""
    for each in processes:
        with suppress(psutil.NoSuchProcess):
            each.kill()


@pytest.fixture
def begin_again(popen):
    """Start a command that goes on with the newest run."""
    return lambda command: popen(
        "fanout", command, "latest", stdout=DEVNULL, stderr=PIPE, text=True
    )


def kill(process):
    process.kill()
    process.communicate()


@pytest.fixture
def answering(provider, monkeypatch):
    """A provider that takes its time, and counts the calls for each document."""
    monkeypatch.setenv("OPENAI_BASE_URL", f"{provider.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "a-key-of-tests")
    provider.delay_s = 0.1
    provider.respond = lambda _headers, request: (
        200,
        openai_reply(f"of {bare(request['messages'][-1]['content'])}" if request else "hi"),
    )

    def calls():
        requests = list(provider.requests)
        return Counter(bare(body["messages"][-1]["content"]) for _, _, body in requests if body)

    return calls


@pytest.mark.parametrize(
    ("command", "dies"), [("resume", "client"), ("watch", "client"), ("resume", "client, keeper")]
)
def test_a_client_that_is_killed_costs_no_answer_that_was_paid_for(
    fanout, state_dir, answering, command, dies, begin
):
    process = begin(300, "--max-workers", "16", model="openai/m")
    at = random.randrange(20, 250)
    until(lambda: answering().total() >= at, "no calls", process=process)
    if "keeper" in dies:
        kill_all(keepers_of(state_dir))
    kill(process)
    known = [json.loads(line) for line in fanout("results", "latest").stdout.splitlines()]
    assert fanout("runs").stdout.split()[3] == "running"
    done = fanout(command, "latest")
    assert done.status == 0, done.stderr
    assert "300 of 300 branches (100.0%)" in done.stderr
    rows = [json.loads(line) for line in fanout("results", "latest").stdout.splitlines()]
    assert [row["output"] for row in rows] == [f"of t{i}" for i in range(300)]
    calls = answering()
    assert len(calls) == 300
    assert {calls[f"t{row['index']}"] for row in known} <= {1}
    # What was in flight when the client died ended, and was written, too.
    assert calls.total() == 300


@pytest.mark.parametrize(
    "words", [["keeper.py"], ["valkey-server"], ["keeper.py", "valkey-server"], ["guard"]]
)
def test_what_serves_a_run_may_be_killed_meanwhile(here, state_dir, words, begin):
    # All processes are looked through meanwhile.
    process = begin(160, "--max-workers", "8", "--out", "out")
    until(lambda: "running" in process.stderr.readline(), "it does not run")
    victims = [
        each
        for each in everything(process, state_dir)
        # The keeper is given the name of the server's program.
        if any(word in words_of(each) for word in words)
    ]
    assert len(victims) == len(words)
    kill_all(victims)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    rows = [json.loads(line) for line in (here / "out" / "outputs.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(160))


def test_a_keeper_that_is_killed_is_replaced_while_the_client_does_something_else(
    here, state_dir, begin
):
    process = begin(20, "--max-workers", "4", "--out", "out")
    until(lambda: "running" in process.stderr.readline(), "it does not run")
    # As one that reads its input for long.
    os.kill(process.pid, signal.SIGSTOP)
    before = of_state(state_dir)
    kill_all(keepers_of(state_dir))

    def is_replaced():
        # Some come and go meanwhile.
        with suppress(psutil.NoSuchProcess):
            names = {each.name() for each in of_state(state_dir) if each not in before}
            return "valkey-server" in names
        return False

    until(is_replaced, "nobody starts it again")
    os.kill(process.pid, signal.SIGCONT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert len((here / "out" / "outputs.jsonl").read_text().splitlines()) == 20


def test_nothing_is_left_where_the_keeper_was_killed_with_its_clients(state_dir, fanout, begin):
    process = begin(60, "--max-workers", "2")
    until(lambda: "running" in process.stderr.readline(), "it does not run")
    everybody = everything(process, state_dir)
    victims = [each for each in everybody if "valkey-server" not in each.name()]
    # None of them is to see another one die.
    for victim in victims:
        with suppress(psutil.NoSuchProcess):
            victim.suspend()
    kill_all(victims)
    process.communicate()
    until(lambda: not of_state(state_dir), "the server goes on")
    # It has ended in order, and what it kept is there.
    assert fanout("runs").stdout.split()[3] == "running"


def test_a_run_survives_that_everything_is_killed(fanout, state_dir, begin):
    process = begin(60, "--max-workers", "8", model="fake?latency_s=1")
    until(lambda: "running" in process.stderr.readline(), "it does not run")
    until(lambda: fanout("results", "latest").stdout, "no answer")
    kill_all(everything(process, state_dir))
    process.communicate()
    assert fanout("resume", "latest").status == 0
    assert len(fanout("results", "latest").stdout.splitlines()) == 60


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_no_server_is_left_whose_keeper_was_killed(state_dir, ending, begin):
    process = begin(60, "--max-workers", "2", "--out", "out", model="fake?latency_s=30")
    until(lambda: "running" in process.stderr.readline(), "it does not run")
    victims = keepers_of(state_dir)
    os.kill(process.pid, signal.SIGSTOP)
    kill_all(victims)
    os.kill(process.pid, ending)
    os.kill(process.pid, signal.SIGCONT)
    process.communicate(timeout=120)
    until(lambda: not of_state(state_dir), "something is left", timeout_s=120)


@pytest.mark.parametrize("damage", [b"\0" * 100, b"\xff*3\r\n$" * 30, b"*3\r\n$-7\r\n"])
def test_a_damaged_end_of_the_file_costs_no_more_than_what_it_held(fanout, state_dir, damage):
    assert fanout("run", "-", *ASK, "fake", "-q", stdin=b"a").status == 0
    until(lambda: not of_state(state_dir), "the server does not end")
    (file,) = (state_dir / "data").glob("*/*.incr.aof")
    file.write_bytes(file.read_bytes() + damage)
    assert "succeeded" in fanout("runs").stdout
    (kept,) = (state_dir / "data").glob("*.damaged")
    assert kept.read_bytes().endswith(damage)


def test_the_reason_why_the_server_does_not_start_is_shown(fanout, state_dir):
    assert fanout("run", "-", *ASK, "fake", "-q", stdin=b"a").status == 0
    until(lambda: not of_state(state_dir), "the server does not end")
    (manifest,) = (state_dir / "data").glob("*/*.manifest")
    manifest.write_text("garbage")
    said = fanout("runs")
    assert said.status == 1
    assert "manifest" in said.stderr


def test_a_folder_that_is_deleted_under_its_server_leaves_nothing(fanout, state_dir, begin):
    process = begin(60, "--max-workers", "1", model="fake?latency_s=30")
    until(lambda: "running" in process.stderr.readline(), "it does not run")
    orphans = [psutil.Process(each.pid) for each in of_state(state_dir)]
    shutil.rmtree(state_dir)
    other = begin(60, "--max-workers", "1", model="fake?latency_s=30")
    until(lambda: "running" in other.stderr.readline(), "it does not run")
    kill(process)
    until(lambda: not any(each.is_running() for each in orphans), "it is left", timeout_s=120)
    # The folder has another server by now, which is none of the first one's.
    assert fanout("runs").stdout.split()[3] == "running"
    kill(other)
    until(lambda: not of_state(state_dir), "something is left", timeout_s=120)


HALF_READ = """
import sys, time
from fanout import Client

def texts(is_slow):
    for i in range(1200):
        if i == 700 and is_slow:
            print("now", flush=True)
            time.sleep(600)
        yield f"t{i}"

with Client() as client:
    if len(sys.argv) > 1:
        run = client.resume(sys.argv[1], texts(False))
        assert run.wait(120).succeeded == 1200
    else:
        client.submit({"model": "fake", "prompt": "{input}"}, texts(True))
"""


def test_a_client_may_die_while_it_reads_its_input(fanout, here, popen):
    """What was not enqueued is enqueued by a resume with the same input."""
    (here / "script.py").write_text(HALF_READ)
    with popen("script", "script.py", stdout=PIPE) as process:
        assert process.stdout.readline() == b"now\n"
        process.kill()
    run_id, _, _, state, done, *_ = fanout("runs").stdout.split()
    assert (state, done.partition("/")[2]) == ("enqueuing", "500+")
    again = subprocess.run([sys.executable, "script.py", run_id], check=False, timeout=120)
    assert again.returncode == 0
    assert "1,200 of 1,200 branches" in fanout("status", run_id).stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_ends_a_program_ends_a_run_in_order(fanout, here, number, begin):
    process = begin(3000, "--max-workers", "4", "--out", "out")
    until(lambda: "running" in process.stderr.readline(), "it does not run")
    until(lambda: json.loads(fanout("status", "latest", "--json").stdout)["done"], "no call")
    process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "stopping: what has finished is kept" in stderr
    record = json.loads((here / "out" / "run.json").read_text())
    assert record["status"] == "cancelled"
    assert len((here / "out" / "outputs.jsonl").read_text().splitlines()) == record["succeeded"] > 0
    again = fanout("resume", "latest")
    assert (again.status, "has ended (cancelled)" in again.stderr) == (0, True)
    assert "`fanout retry" in again.stderr


@pytest.mark.parametrize(
    ("command", "number"),
    [("watch", signal.SIGHUP), ("resume", signal.SIGTERM), ("retry", signal.SIGHUP)],
)
def test_a_command_that_goes_on_with_a_run_is_ended_in_order(
    fanout, command, number, begin, begin_again
):
    model = "fake?latency_s=0.3&fail_rate=1" if command == "retry" else "fake?latency_s=0.3"
    # Long enough that it has not ended when it is ended: a retry begins when all have failed.
    count = 24 if command == "retry" else 100
    process = begin(count, "--max-workers", "2", "--max-attempts", "1", model=model)
    if command == "retry":
        process.communicate()
    else:
        until(lambda: "running" in process.stderr.readline(), "it does not run")
        kill(process)
    going = begin_again(command)
    word = "processed again" if command == "retry" else "running"
    until(lambda: word in going.stderr.readline(), "it does not go on")
    going.send_signal(number)
    _, stderr = going.communicate(timeout=120)
    assert "Traceback" not in stderr
    assert going.returncode == 130, stderr
    if command == "watch":
        assert "`fanout resume" in stderr, "no other process works on it"


def test_two_ctrl_c_end_at_once_and_say_where_the_answers_are(fanout, begin):
    process = begin(80, "--max-workers", "2", model="fake?latency_s=0.5")
    until(lambda: "running" in process.stderr.readline(), "it does not run")
    until(lambda: json.loads(fanout("status", "latest", "--json").stdout)["done"], "no call")
    os.kill(process.pid, signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    os.kill(process.pid, signal.SIGCONT)
    until(lambda: "stopping" in process.stderr.readline(), "it does not stop")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    run_id = fanout("runs").stdout.split()[0]
    if "quitting" in stderr:
        assert f"run {run_id} is kept: `fanout results {run_id}`" in stderr
    assert fanout("resume", run_id).status in {0, 1}
    assert fanout("results", run_id).stdout.count('"output"') >= 1


def test_a_run_is_looked_at_steered_and_tried_again_without_a_broker(fanout, here):
    write_input(here, 40)
    done = fanout("run", "in.jsonl", *ASK, "fake?fail_rate=0.3", "--max-attempts", "1", "--quiet")
    assert done.status == 0
    [run] = [json.loads(line) for line in fanout("runs", "--json").stdout.splitlines()]
    run_id, failed = run["run_id"], run["failed"]
    assert failed
    assert fanout("runs", "--status", "failed").stdout == ""
    assert len(fanout("errors", run_id[:4]).stdout.splitlines()) == failed
    assert fanout("report", run_id).stdout.strip() == f"fanout-{run_id}.html"
    assert len(fanout("results", run_id).stdout.splitlines()) == 40 - failed
    again = fanout("retry", run_id, "--json")
    assert json.loads(again.stdout)["branches"] == failed
    assert again.status == 0
    assert fanout("pause", run_id).stdout == f"run {run_id} has ended already (succeeded)\n"
    assert fanout("unpause", run_id).status == 0
    assert "has ended already (succeeded)" in fanout("cancel", run_id).stdout
    assert fanout("watch", run_id).status == 0
    assert fanout("delete", run_id).stdout == f"run {run_id} is deleted\n"
    assert fanout("runs").stdout == ""
    assert fanout("status", run_id).status == 1


@pytest.mark.parametrize("command", ["cancel", "pause"])
def test_a_run_whose_client_died_is_steered(fanout, command, begin, begin_again):
    process = begin(200, "--max-workers", "2", model="fake?latency_s=0.3")
    until(lambda: "running" in process.stderr.readline(), "it does not run")
    own = psutil.Process(process.pid).children(recursive=True)
    kill(process)
    # Its worker ends once it sees that.
    assert psutil.wait_procs(own, timeout=120)[1] == []
    assert fanout(command, "latest").status == 0
    if command == "pause":
        run_id = fanout("runs").stdout.split()[0]
        hint = f"`fanout unpause {run_id}` lets it go on"
        assert hint in fanout("status", "latest").stdout
        assert f"`fanout resume {run_id}` goes on" in fanout("unpause", "latest").stdout
        fanout("pause", "latest")
        going = begin_again("resume")
        assert hint in going.stderr.readline()
        assert fanout("unpause", "latest").stdout == f"run {run_id} goes on\n"
        watching = begin_again("watch")
        until(lambda: "running" in watching.stderr.readline(), "it does not go on")
        watching.send_signal(signal.SIGINT)
        assert f"run {run_id} goes on: `fanout watch {run_id}`" in watching.communicate()[1]
        kill(going)
        fanout("cancel", "latest")
    assert "cancelled: " in fanout("status", "latest").stdout


def test_clients_at_once_share_a_server_and_nothing_else(fanout, here, state_dir, popen):
    """Each has its own environment: no worker takes the branches of another's run."""
    write_input(here, 30)
    processes = []
    for name in ("red", "green", "blue"):
        (here / name).mkdir()
        code = f"import time\n\ndef ask(prompt):\n    time.sleep(0.1)\n    return {name!r}\n"
        (here / name / "mine.py").write_text(code)
        words = ("run", "../in.jsonl", *ASK, "mine:ask", "--reduce", "vote")
        env = {**os.environ, "PYTHONPATH": str(here / name)}
        processes.append(popen("fanout", *words, cwd=here / name, env=env, stdout=PIPE, text=True))
    outputs = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    assert [each["votes"] for each in outputs] == [{"red": 30}, {"green": 30}, {"blue": 30}]
    assert len(fanout("runs").stdout.splitlines()) == 3
    until(lambda: not of_state(state_dir), "the server ends with its last client")


def test_nobody_else_can_reach_the_server(state_dir, begin):
    process = begin(40, "--max-workers", "1")
    until(lambda: "running" in process.stderr.readline(), "it does not run")
    everybody = everything(process, state_dir)
    listening = [
        connection
        for each in everybody
        for connection in each.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening == []
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in state_dir.iterdir()}
    assert stat.S_IMODE(state_dir.stat().st_mode) == 0o700
    assert {mode & 0o077 for name, mode in modes.items() if name != "format.json"} == {0}
    assert stat.S_ISSOCK((state_dir / "server.sock").stat().st_mode)
    # The keys of the client that has started it do not stay with the server.
    server = next(each for each in everybody if "valkey" in each.name())
    assert not [name for name in server.environ() if name.startswith(("FANOUT_", "OPENAI"))]
    kill(process)


def test_a_log_that_was_cut_by_a_power_failure_is_read(fanout, here, state_dir):
    write_input(here, 20)
    fanout("run", "in.jsonl", *ASK, "fake")
    until(lambda: not of_state(state_dir), "the server ends with its last client")
    [log] = (state_dir / "data" / "appendonlydir").glob("*.incr.aof")
    with log.open("ab") as file:
        file.write(b"*3\r\n$3\r\nSET\r\n$3\r\nhal")
    assert len(fanout("results", "latest").stdout.splitlines()) == 20


def test_a_state_folder_that_cannot_be_read_is_reported_and_left_as_it_is(fanout, here, state_dir):
    write_input(here, 3)
    fanout("run", "in.jsonl", *ASK, "fake")
    until(lambda: not of_state(state_dir), "the server ends with its last client")
    marker = state_dir / "format.json"
    own = marker.read_text()

    def files():
        return {path: path.read_bytes() for path in state_dir.rglob("*") if path.is_file()}

    marker.write_text(json.dumps({**json.loads(own), "format": 99, "fanout": "9.9"}))
    before = files()
    for command in (["runs"], ["run", "in.jsonl", *ASK, "fake"]):
        done = fanout(*command)
        assert done.status == 1
        assert "fanout 9.9 has written" in done.stderr
        assert "set FANOUT_STATE_DIR to another folder" in done.stderr
        assert done.stderr.count("\n") == 1
    assert files() == before
    marker.write_text(own)
    state_dir.chmod(0o755)
    assert "chmod 700" in fanout("runs").stderr
    state_dir.chmod(0o700)
    assert len(fanout("results", "latest").stdout.splitlines()) == 3


def test_a_folder_that_cannot_be_made_is_one_clear_line(fanout, here):
    (here / "file").write_text("x")
    done = fanout("runs", FANOUT_STATE_DIR=str(here / "file" / "state"))
    assert (done.status, done.stderr.count("\n")) == (1, 1)
    assert "set FANOUT_STATE_DIR to a folder of yours" in done.stderr


def test_a_folder_whose_name_is_too_long_for_a_socket_is_used(fanout, here):
    deep = here / ("d" * 120) / "state"
    write_input(here, 3)
    env = {"FANOUT_STATE_DIR": str(deep)}
    assert fanout("run", "in.jsonl", *ASK, "fake", **env).status == 0
    assert len(fanout("results", "latest", **env).stdout.splitlines()) == 3


FUNCTION = """
import sys, time
from fanout import ParallelCalls

def ask(prompt):
    with open("calls", "a") as file:
        file.write(prompt + "\\n")
    time.sleep(0.05)
    return prompt.upper()

with ParallelCalls(llm=ask, max_workers=4) as runner:
    if len(sys.argv) > 1:
        result = runner.resume(sys.argv[1])
        assert result.outputs == [f"T{i}" for i in range(100)], result
    else:
        runner.run([f"t{i}" for i in range(100)], "{input}")
"""


def test_a_function_of_a_process_that_was_killed_is_gone_on_with_in_another(fanout, here, popen):
    (here / "script.py").write_text(FUNCTION)
    process = popen("script", "script.py")
    calls = here / "calls"
    until(lambda: calls.exists() and calls.read_text().count("\n") > 30, "calls", process=process)
    process.kill()
    process.wait()
    known = [json.loads(line)["index"] for line in fanout("results", "latest").stdout.splitlines()]
    assert known
    run_id = fanout("runs").stdout.split()[0]
    refused = fanout("resume", run_id)
    assert (refused.status, refused.stderr.count("\n")) == (1, 1)
    assert f"ParallelCalls(llm=FUNCTION).resume('{run_id}')" in refused.stderr
    done = subprocess.run([sys.executable, "script.py", run_id], cwd=here, check=False, timeout=120)
    assert done.returncode == 0
    counts = Counter(calls.read_text().split())
    assert {counts[f"t{index}"] for index in known} == {1}
    assert len(fanout("results", run_id).stdout.splitlines()) == 100


LIMITED = ["sh", "-c", 'ulimit -Sn 256 && ulimit -Hn 1000 && exec "$@"', "sh"]
TOO_MANY = "2,000 branches in flight need 2,128 open files, and this process may have 1,000: lower"


@pytest.mark.parametrize(
    ("options", "env", "words"),
    [
        (["--max-workers", "2000"], {}, f"fanout: --max-workers: {TOO_MANY} it to 872"),
        ([], {"FANOUT_CONCURRENCY": "2000"}, f"fanout: FANOUT_CONCURRENCY: {TOO_MANY} it to 872"),
        ([], {"CELERY_WORKER_TIME_LIMIT": "soon"}, "Invalid value for '--time-limit': 'soon'"),
        (["--max-workers", "800"], {}, ""),
        ([], {"FANOUT_QUEUES": "branches"}, ""),
        ([], {"FANOUT_POOL": "prefork", "FANOUT_AUTOSCALE": "4,2"}, ""),
    ],
)
def test_a_setting_that_the_worker_refuses_is_reported_once(here, state_dir, options, env, words):
    write_input(here, 3)
    command = [*LIMITED, FANOUT, "run", "in.jsonl", *ASK, "fake", "--quiet", *options]
    done = subprocess.run(
        command, env={**os.environ, **env}, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == (2 if words else 0), done.stderr
    assert words in done.stderr
    assert done.stderr.count("Usage" if "Invalid" in words else "branches in flight") <= 1


@pytest.mark.parametrize(
    ("module", "status", "starts"),
    [("raise SystemExit('no seat')", 1, 3), ("import sys; sys.exit(2)", 2, 1)],
)
def test_a_worker_that_does_not_start_is_not_started_for_long(fanout, here, module, status, starts):
    """Its event loop is the first that only the worker imports."""
    (here / "modules").mkdir()
    (here / "modules" / "uvloop.py").write_text(
        f"open('starts', 'a').write('x')\nprint('out of seats', flush=True)\n{module}\n"
    )
    write_input(here, 3)
    done = fanout("run", "in.jsonl", *ASK, "fake", "-q", PYTHONPATH=str(here / "modules"))
    assert done.status == status, done.stderr
    assert done.stderr.count("out of seats") == 1
    assert len((here / "starts").read_text()) == starts


def test_a_function_for_too_many_workers_is_refused_and_a_run_goes_on_with_fewer(fanout, begin):
    """What lives in a process that may have more files is resumed in one that may have fewer."""
    script = "from fanout import ParallelCalls; "
    script += "ParallelCalls(llm=lambda p: p, max_workers=2000).run(['a'], '{input}')"
    command = [*LIMITED, sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert f"fanout.core.errors.SpecError: max_workers: {TOO_MANY} it to 872" in done.stderr
    process = begin(900, "--max-workers", "2000", model="fake?latency_s=1")
    until(lambda: "running" in process.stderr.readline(), "it does not run")
    kill(process)
    command = [*LIMITED, FANOUT, "resume", "latest"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_resume_with_other_input_says_that_it_is_not_read(fanout, here):
    write_input(here, 5)
    fanout("run", "in.jsonl", *ASK, "fake")
    same = (here / "in.jsonl").read_text()
    other = '{"text": "other"}\n'
    for text, words in [(other, "differs at document"), (f"{same}\n{other}", "'in.jsonl:6'")]:
        (here / "in.jsonl").write_text(text)
        done = fanout("resume", "latest", "in.jsonl")
        assert (done.status, done.stdout) == (1, "")
        assert "has ended (succeeded), and takes no further input" in done.stderr
        assert words in done.stderr
    (here / "in.jsonl").write_text(same)
    done = fanout("resume", "latest", "in.jsonl")
    assert (done.status, "there is nothing to resume" in done.stderr) == (0, True)


def test_a_database_is_used_again_when_its_runs_are_gone(fanout, here, state_dir):
    write_input(here, 2)
    fanout("run", "in.jsonl", *ASK, "fake")
    fanout("delete", "latest")
    code = """
import os
from fanout.client.embedded.databases import Databases
from fanout.client.embedded.fleet import use_server
from fanout.core.settings import load_settings
server = use_server()
databases = Databases(server, load_settings())
assert databases.claim().number == 2
databases.sweep()
assert databases.locations() == {}
assert databases.claim().number == 1
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == 0
