"""Each row of the failure model, caused for real: a run always ends, and its record is complete."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial

import psutil
import pytest
import redis

from fanout import Client, ErrorKind, RunStatus
from fanout.broker.app import BRANCHES_QUEUE, CONTROL_QUEUE
from fanout.core.spec import make_spec
from fanout.policy.packing import pack
from tests.integration.conftest import wait_for
from tests.servers import ServerProcess

# A worker's death is noticed, and what got lost is found, in seconds instead of half a minute.
HASTE = {
    "FANOUT_VISIBILITY_TIMEOUT_S": "5",
    "FANOUT_STALL_S": "2",
    "FANOUT_REAPER_INTERVAL_S": "0.5",
}


@pytest.fixture
def model(functions, tmp_path):
    """Write a model that logs each call that it makes; return what a worker needs to find it."""

    def write(body="return 'fine'"):
        lines = "".join(f"    {line}\n" for line in body.splitlines())
        path = functions(
            "import asyncio, os, pathlib, signal, sys, time\n"
            f"here = pathlib.Path({str(tmp_path)!r})\n"
            "async def model(prompt):\n"
            "    with (here / 'calls').open('a') as log:\n"
            "        log.write(f'{os.getpid()} {prompt.splitlines()[0]}\\n')\n" + lines
        )
        return {"PYTHONPATH": path, **HASTE}

    return write


@pytest.fixture
def calls(tmp_path):
    """Return the calls made so far: pairs of process and prompt."""

    def read():
        try:
            text = (tmp_path / "calls").read_text()
        except FileNotFoundError:
            return []
        return [tuple(line.split(" ", 1)) for line in text.splitlines()]

    return read


def submit(client, count, **fields):
    job = {"model": "functions_under_test:model", "prompt": "{input}", "reduce": "vote", **fields}
    return client.submit(make_spec(**job), [f"text {i}" for i in range(count)])


def complete(run, count, *, failed=0, timeout_s=120):
    """Wait for a run and check that each branch has exactly one outcome; return its result."""
    status = run.wait(timeout_s)
    assert status.status is RunStatus.SUCCEEDED
    assert (status.total, status.succeeded, status.failed) == (count, count - failed, failed)
    result = run.result()
    assert [branch.index for branch in result.branches] == list(range(count))
    assert sum(result.aggregated["votes"].values()) == count - failed
    return result


def test_all_calls_of_a_killed_worker_are_made_by_another_within_half_more_than_its_lease(
    client, start_worker, model, calls
):
    """200 calls in flight, each longer than the lease."""
    env = model("await asyncio.sleep(8 if (here / 'killed').exists() else 600)\nreturn 'fine'")
    first = start_worker("--concurrency", "200", **env)
    run = submit(client, 200)
    wait_for(lambda: len(calls()) == 200, "all calls are in flight")
    start_worker("--concurrency", "200", **env)
    (first.log.parent / "killed").touch()
    killed_at = time.monotonic()
    first.kill()
    wait_for(lambda: len(calls()) == 400, "all calls are made again")
    assert time.monotonic() - killed_at < 1.5 * 5 + 20, "a busy machine takes a while for 200 calls"
    complete(run, 200)
    assert len(calls()) == 400, "calls that outlast the lease are not made once more"


def test_calls_that_are_longer_than_the_lease_are_made_once(client, start_worker, model, calls):
    env = model("await asyncio.sleep(8)\nreturn 'fine'")
    for _ in range(2):
        start_worker("--concurrency", "4", **env)
    run = submit(client, 8)
    complete(run, 8)
    assert len(calls()) == 8


def test_a_chunk_that_kills_its_worker_is_recorded_and_the_others_succeed(
    client, start_worker, model
):
    env = model(
        "if prompt == 'text 7':\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "await asyncio.sleep(0.2)\n"
        "return 'fine'"
    )
    worker = start_worker("--concurrency", "8", **env)
    run = submit(client, 40)
    deaths = 0
    while not run.status().status.has_ended:
        if worker.process.poll() is not None:
            deaths += 1
            assert deaths < 10
            worker = start_worker("--concurrency", "8", **env)
        time.sleep(0.05)
    result = complete(run, 40, failed=1)
    assert [(error.index, error.kind) for error in result.errors] == [(7, ErrorKind.POISONED)]
    assert deaths == 4, "it was begun four times, and then no more"


@pytest.mark.parametrize("times", [1, 2])
def test_a_prefork_child_that_is_killed_costs_its_branch_one_more_call(
    client, start_worker, model, calls, times
):
    env = model("time.sleep(0.5)\nreturn 'fine'")
    worker = start_worker("--concurrency", "2", FANOUT_POOL="prefork", **env)
    run = submit(client, 10)
    for seen in range(1, times + 1):
        wait_for(lambda: len(calls()) >= 3 * seen, "calls are made")  # noqa: B023 - polled at once
        psutil.Process(worker.children()[0]).kill()
    complete(run, 10)
    assert 10 <= len(calls()) <= 10 + times


def dies(functions, tmp_path, target, when):
    """Have a worker kill itself, once, at a step that no outside signal could hit."""
    owner, name = target.rsplit(".", 1)
    module, class_name = owner.rsplit(".", 1)
    functions(
        "import os, pathlib, signal\n"
        f"from {module} import {class_name} as owner\n"
        f"marker = pathlib.Path({str(tmp_path / 'died')!r})\n"
        f"step = owner.{name}\n"
        "def die():\n"
        "    try:\n"
        "        marker.touch(exist_ok=False)\n"
        "    except FileExistsError:\n"
        "        return\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "def dying(self, *args, **kwargs):\n"
        f"    if {when}:\n"
        "        die()\n"
        "    return step(self, *args, **kwargs)\n"
        f"owner.{name} = dying\n",
        name="dies",
    )
    return ("-I", "dies")


STEPS = {
    "between an outcome and its part-return": (
        "fanout.broker.result_backend.TolerantRedisBackend.on_chord_parts_return",
        "True",
    ),
    "between the part-returns of some branches and of another": (
        "fanout.broker.result_backend.TolerantRedisBackend.on_chord_part_return",
        "args[0].id[-2:].isdigit()",
    ),
    "in the join of a shard's chord": (
        "fanout.broker.result_backend.TolerantRedisBackend._unpack_chord_result",
        "True",
    ),
    "in the publishing of a shard": (
        "fanout.broker.publisher.Publisher.branches",
        "True",
    ),
    "before the run is published as sealed": (
        "fanout.broker.publisher.Publisher.seal",
        "args[0].stage == 1",
    ),
    "between compaction and the opening of the next shard": (
        "fanout.stores.RedisStore.open_shards",
        "kwargs.get('finished') == 0",
    ),
    "when the aggregate is written": ("fanout.stores.RedisStore.put_result", "True"),
    "after the aggregate is written": ("fanout.stores.RedisStore.end_run", "True"),
    "in the root chord's count": (
        "fanout.broker.result_backend.TolerantRedisBackend.on_chord_part_return",
        "args[0].id.endswith('/collect')",
    ),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_worker_that_dies_between_two_steps_loses_nothing(
    client, start_worker, model, functions, tmp_path, calls, step, monkeypatch
):
    """Of two shards, which are small, as the steps are those of any size."""
    monkeypatch.setattr("fanout.runs.enqueue.pack", partial(pack, max_branches=100))
    env = model()
    options = dies(functions, tmp_path, *STEPS[step])
    worker = start_worker("--concurrency", "4", *options, **env)
    fields = {"aggregate_prompt": "{input}", "reduce": "llm"} if "sealed" in step else {}
    run = submit(client, 140, **fields)
    worker.process.wait(120)
    start_worker("--concurrency", "4", *options, **env)
    if fields:
        assert run.wait(120).succeeded == 140
        assert run.result().aggregated == "fine"
    else:
        complete(run, 140)
    in_flight = 4
    assert len(calls()) <= 140 + in_flight + (1 if fields else 0)


def test_messages_that_are_deleted_are_published_again(
    client, start_worker, model, broker_url, calls
):
    env = model("await asyncio.sleep(0.05)\nreturn 'fine'")
    start_worker("--concurrency", "4", **env)
    run = submit(client, 600)
    with redis.Redis.from_url(broker_url) as server:
        wait_for(lambda: run.status().done > 20, "it is under way")
        assert server.delete(BRANCHES_QUEUE)
        wait_for(lambda: run.status().done > 300, "it goes on")
        server.delete(BRANCHES_QUEUE, CONTROL_QUEUE)
        server.delete("unacked", "unacked_index")
    complete(run, 600)
    assert len(calls()) == 600, "what is in flight is not lost, so it is not made again"


def evict(server, pattern):
    for key in server.scan_iter(pattern):
        server.delete(key)


@pytest.mark.parametrize("pattern", ["celery-taskset-meta-*", "fanout:run:*:s0:open"])
def test_keys_of_chords_and_windows_that_are_evicted_are_made_up_for(
    client, start_worker, model, broker_url, calls, pattern
):
    env = model("await asyncio.sleep(0.02)\nreturn 'fine'")
    start_worker("--concurrency", "4", **env)
    run = submit(client, 700)
    with redis.Redis.from_url(broker_url) as server:
        for done in (20, 200, 650):
            wait_for(lambda: run.status().done > done, "it is under way")  # noqa: B023
            evict(server, pattern)
    complete(run, 700)
    assert len(calls()) == 700


def test_a_task_that_some_worker_does_not_know_is_published_again(
    client, start_worker, model, functions, broker_url, calls
):
    env = model("await asyncio.sleep(0.02)\nreturn 'fine'")
    folder = functions("from celery import Celery\napp = Celery('older')\n", name="older")
    run = submit(client, 50)
    older = start_older(folder, broker_url)
    try:
        with redis.Redis.from_url(broker_url) as server:
            wait_for(lambda: not server.llen(CONTROL_QUEUE), "the older worker took the task")
    finally:
        older.kill()
        older.wait()
    start_worker("--concurrency", "4", **env)
    complete(run, 50)


def start_older(folder, broker_url):
    command = [sys.executable, "-m", "celery", "-A", "older", "-b", broker_url, "worker"]
    return subprocess.Popen(
        [*command, "--pool", "solo", "-Q", f"{CONTROL_QUEUE},{BRANCHES_QUEUE}"],
        env={**os.environ, "PYTHONPATH": folder},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_a_branch_that_exceeds_a_hard_time_limit_is_recorded(client, start_worker, model):
    env = model("time.sleep(600 if prompt == 'text 3' else 0)\nreturn 'fine'")
    options = ("--concurrency", "2", "--time-limit", "6")
    start_worker(*options, FANOUT_POOL="prefork", **env)
    result = complete(submit(client, 6), 6, failed=1)
    assert [(error.index, error.kind) for error in result.errors] == [(3, ErrorKind.TIME_LIMIT)]


def test_a_branch_that_is_revoked_in_flower_is_recorded(client, start_worker, model, tmp_path):
    from fanout.broker.app import make_app
    from fanout.core.settings import load_settings

    env = model("while not (here / 'go').exists():\n    await asyncio.sleep(0.01)\nreturn 'fine'")
    start_worker("--concurrency", "2", **env)
    run = submit(client, 6)
    settings = load_settings(broker_url=client.broker_url)
    # Connections of the pool may be those of a test that broke them.
    with make_app(settings) as app, app.connection() as connection:
        options = {"reply": True, "timeout": 60, "limit": 1, "connection": connection}
        assert app.control.revoke(f"{run.run_id}/0/0/5", **options), "the worker knows of it"
    (tmp_path / "go").touch()
    result = complete(run, 6, failed=1)
    assert [(error.index, error.kind) for error in result.errors] == [(5, ErrorKind.CANCELLED)]


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_worker_that_is_asked_to_stop_hands_long_calls_back_at_once(
    client, start_worker, model, calls, pool
):
    """As Kubernetes does it: SIGTERM, a grace time, SIGKILL. Nothing waits for a timeout."""
    env = model("await asyncio.sleep(0.2 if (here / 'stopped').exists() else 600)\nreturn 'fine'")
    env = {**env, "FANOUT_VISIBILITY_TIMEOUT_S": "3600", "FANOUT_STALL_S": "3600"}
    first = start_worker("--concurrency", "4", FANOUT_GRACE_S="1", FANOUT_POOL=pool, **env)
    run = submit(client, 12)
    wait_for(lambda: len(calls()) == 4, "calls are in flight")
    (first.log.parent / "stopped").touch()
    first.signal(signal.SIGTERM)
    first.process.wait(120)
    start_worker("--concurrency", "4", **env)
    complete(run, 12, timeout_s=120)
    assert len(calls()) == 16


def test_sigint_twice_hands_back_at_once(client, start_worker, model, calls):
    env = model("await asyncio.sleep(0.2 if (here / 'stopped').exists() else 600)\nreturn 'fine'")
    env = {**env, "FANOUT_VISIBILITY_TIMEOUT_S": "3600", "FANOUT_STALL_S": "3600"}
    first = start_worker("--concurrency", "4", FANOUT_GRACE_S="3600", **env)
    run = submit(client, 4)
    wait_for(lambda: len(calls()) == 4, "calls are in flight")
    (first.log.parent / "stopped").touch()
    first.signal(signal.SIGINT)
    wait_for(lambda: "Warm shutdown" in first.log.read_text(), "it was heard")
    first.signal(signal.SIGINT)
    first.process.wait(120)
    start_worker("--concurrency", "4", **env)
    complete(run, 4, timeout_s=120)


def test_a_worker_that_was_stopped_for_longer_than_its_lease_does_no_harm(
    client, start_worker, model, calls
):
    """Other workers make its calls meanwhile; what it writes when it goes on comes too late."""
    env = model("await asyncio.sleep(1)\nreturn 'fine'")
    first = start_worker("--concurrency", "8", **env)
    run = submit(client, 16)
    wait_for(lambda: len(calls()) >= 8, "calls are in flight")
    start_worker("--concurrency", "8", **env)
    first.signal(signal.SIGSTOP)
    try:
        complete(run, 16)
    finally:
        first.signal(signal.SIGCONT)
    wait_for(lambda: first.name in client.workers(), "it is back")
    complete(run, 16)
    complete(submit(client, 16), 16)


CLIENT = """
import sys, time
from fanout import Client, RunSpec

def documents(stop):
    for i in range(4_000):
        while i == stop:
            time.sleep(60)
        yield f"document {i}"

def say(run_id):
    print(run_id, flush=True)

spec = RunSpec(model="fake?latency_s=0.01&fail_rate=0.03", prompt="{input}", reduce="concat",
               retries={"max_attempts": 1})
with Client() as client:
    if sys.argv[1] == "submit":
        run = client.submit(spec, documents(int(sys.argv[2])), on_created=say)
    else:
        run = client.resume(sys.argv[2], documents(None))
    run.wait()
"""


@pytest.fixture
def start_client(here, durable, popen):
    """Start a client in a process of its own."""
    (here / "client.py").write_text(CLIENT)
    clients = []

    def start(*arguments):
        clients.append(
            popen(
                "script",
                "client.py",
                *arguments,
                env={**os.environ, "FANOUT_BROKER_URL": durable.url},
                stdout=subprocess.PIPE,
            )
        )
        return clients[-1]

    yield start
    for client in clients:
        client.kill()
        client.wait()
        client.stdout.close()


@pytest.fixture
def durable(tmp_path):
    """A server that keeps what it has acknowledged."""
    server = ServerProcess(tmp_path / "server", appendonly="yes")
    yield server
    server.kill()


@pytest.mark.timeout(300)
def test_a_run_that_loses_its_client_a_worker_and_the_server_gives_what_an_undisturbed_one_does(
    start_worker, start_client, durable
):
    workers = [start_worker("--concurrency", "16", url=durable.url, **HASTE) for _ in range(2)]
    undisturbed = start_client("submit", "-1")
    expected_id = undisturbed.stdout.readline().decode().strip()
    assert undisturbed.wait(120) == 0

    first = start_client("submit", "2500")
    run_id = first.stdout.readline().decode().strip()
    with Client(durable.url) as client:
        run = client.run(run_id)
        wait_for(lambda: run.status().total == 2500, "the client has enqueued a part")
        first.kill()
        assert first.wait() != 0
        second = start_client("resume", run_id)
        wait_for(lambda: run.status().done > 800, "a part is done", 120)
        workers[0].kill()
        wait_for(lambda: run.status().done > 2000, "half of it is done", 120)
    durable.kill()
    durable.start()
    assert second.wait(120) == 0, "the client that waits rides it out"

    with Client(durable.url) as client:
        expected, result = (client.run(one).result() for one in (expected_id, run_id))
    assert len(result.outputs) == 4_000
    assert 60 < len(result.errors) < 180
    assert result.outputs == expected.outputs
    assert result.errors == expected.errors
    assert result.aggregated == expected.aggregated
    assert result.status is RunStatus.SUCCEEDED
    assert result.usage.calls >= 4_000, "and those in flight on the worker once more"
