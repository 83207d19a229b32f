"""Runs whose server fails under them: every branch is accounted for, and the workers go on."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest
import redis
from faults.refusals import WAYS, refusing

from fanout import Client, RunStatus
from fanout.broker.app import connect_broker
from fanout.broker.publisher import Publisher
from fanout.core.ids import ShardId
from fanout.core.settings import load_settings
from fanout.core.spec import make_spec
from fanout.doctor.examination import examine
from tests.servers import ServerProcess, WatchedPair
from workers.config import make_worker_app
from workers.consumer.consumer import Consumer

from .conftest import wait_for

_log = logging.getLogger(__name__)

BRANCHES = 200
# Enough for the worker to be busy throughout.
MANY = 120
REFUSED_S = 3.5
# What is lost is found soon, and what a dead connection held comes back soon.
QUICK = {
    "FANOUT_VISIBILITY_TIMEOUT_S": "5",
    "FANOUT_STALL_S": "2",
    "FANOUT_REAPER_INTERVAL_S": "1",
    "FANOUT_GRACE_S": "2",
}


class Calls:
    """A model that workers import, and the calls that were made of it."""

    def __init__(self, folder):
        self.path = str(folder)
        self._log = folder / "calls"
        folder.mkdir()
        (folder / "slow_model.py").write_text(
            "import asyncio\n"
            "async def model(prompt):\n"
            f"    with open({str(self._log)!r}, 'a') as log:\n"
            "        log.write(prompt + '\\n')\n"
            "    await asyncio.sleep(0.2)\n"
            "    return 'answer to ' + prompt\n"
        )

    def count(self):
        return Counter(self._log.read_text().splitlines()) if self._log.exists() else Counter()


@pytest.fixture
def calls(tmp_path):
    return Calls(tmp_path / "functions")


@pytest.fixture
def server(tmp_path):
    """A server of the test's own."""
    running = ServerProcess(tmp_path / "server", appendonly="yes", appendfsync="always")
    yield running
    running.kill()


@pytest.fixture
def pair(tmp_path):
    running = WatchedPair(tmp_path / "pair")
    try:
        wait_for(running.is_in_sync, "the replica and the sentinels are there")
        yield running
    finally:
        running.kill()


@pytest.fixture
def fleet(start_worker, calls):
    """Start a worker of 16, and return a client of its server."""
    clients = []

    def start(url):
        start_worker("--concurrency", "16", url=url, PYTHONPATH=calls.path, **QUICK)
        clients.append(Client(url))
        return clients[-1]

    yield start
    for client in clients:
        client.close()


def submit(client, count=BRANCHES):
    spec = make_spec(model="slow_model:model", prompt="{input}", reduce="concat")
    return client.submit(spec, [f"text {number} of {count}" for number in range(count)])


def under_way(run, share=0.2):
    """Wait until a share of a run is done."""
    wait_for(lambda: run.status().done >= share * run.status().total, f"{share:.0%} are done")


def assert_complete(run, calls, timeout_s=120):
    """Each branch has exactly one outcome, an answer.

    How many calls were made more than once is logged: `pytest --log-cli-level INFO`.
    """
    began = time.monotonic()
    run.wait(timeout_s)
    result = run.result()
    status = run.status()
    twice = sum(times - 1 for times in calls.count().values())
    took_s = time.monotonic() - began
    _log.info("%d branches, %d calls made again, %.1f s to the end", status.total, twice, took_s)
    assert status.succeeded + status.failed == status.total == len(result.branches)
    assert [branch.index for branch in result.branches] == list(range(status.total))
    assert result.errors == []
    assert result.status is RunStatus.SUCCEEDED
    assert result.aggregated.count("answer to") == status.total


def assert_consumes(client, calls):
    """A worker that only seems to be there would leave this run in the queue."""
    assert_complete(submit(client, 20), calls, timeout_s=120)


def test_a_failover_by_sentinel_loses_nothing_and_the_worker_goes_on(pair, fleet, calls):
    client = fleet(pair.url)
    run = submit(client)
    under_way(run)
    with pair.first.client() as admin:
        # Replication is asynchronous: what is tested is the failover, not that.
        admin.client_pause(90_000, all=False)
        wait_for(lambda: _is_replicated(pair.first), "the replica has all")
        pair.first.kill()
    assert_complete(run, calls)
    assert_consumes(client, calls)


def test_a_master_that_hangs_is_left_as_soon_as_there_is_another(pair, fleet, calls):
    """It keeps its connections open: each would be waited for as long as its socket allows."""
    client = fleet(pair.url)
    run = submit(client)
    under_way(run, 0.1)
    wait_for(lambda: _is_replicated(pair.first), "the replica has all")
    pair.first.signal(signal.SIGSTOP)
    try:
        wait_for(
            lambda: pair.sentinels[0].master()["port"] == pair.second.port,
            "the sentinels have made the other one the master",
        )
        # A socket waits for 20 s, and a worker had six of them to wait for, one after the other.
        assert_complete(run, calls, timeout_s=100)
    finally:
        pair.first.signal(signal.SIGCONT)


def is_master(server):
    # A server that becomes the master disconnects its clients.
    with suppress(redis.ConnectionError):
        return server.info("replication")["role"] == "master"
    return False


def test_a_command_in_flight_when_its_master_dies_goes_to_the_new_one(pair):
    """A thread that tried the dead one again and again would hold its branch for ever."""
    settings = load_settings(broker_url=pair.url)
    with (
        connect_broker(settings, is_patient=True) as client,
        connect_broker(settings) as other,
        ThreadPoolExecutor() as pool,
    ):
        waiting = pool.submit(client.blpop, ["key"], timeout=15)
        wait_for(lambda: pair.first.info("clients")["blocked_clients"] == 1, "it is in flight")
        pair.first.kill()
        wait_for(lambda: is_master(pair.second), "there is a new one")
        other.lpush("key", "value")
        assert waiting.result(120) == (b"key", b"value")


def test_a_server_that_dies_under_a_blocking_read_does_not_end_the_worker(server):
    """An ack may be the first to notice: then the consumer's BRPOP is still under way."""
    app = make_worker_app(load_settings(broker_url=server.url))
    Publisher(app).collect(ShardId("r1", 0, 0))
    connection = app.connection_for_read()
    channel = connection.default_channel
    taken = []
    tasks = app.amqp.TaskConsumer(channel, callbacks=[lambda _body, message: taken.append(message)])
    tasks.consume()
    # Where a worker gets its remote commands: this channel's close fails as well.
    app.control.mailbox.Node("w@test", channel=connection.channel()).listen(callback=print)
    while not taken:
        connection.drain_events(timeout=60)
    channel._brpop_start()
    server.kill()
    consumer = object.__new__(Consumer)
    consumer.app, consumer.connection = app, connection
    consumer.connection_errors = connection.connection_errors
    consumer.channel_errors = connection.channel_errors
    app.conf.worker_enable_prefetch_count_reduction = False
    # Where warnings are errors, as in these tests, one of Celery's would end an embedded worker.
    consumer.on_connection_error_after_connected(ConnectionError())
    assert consumer.connection is None
    server.start()
    taken[0].ack()
    with server.client() as client:
        assert client.hlen("unacked") == 0, "what was taken can still be acknowledged"
    app.close()


def _refusals(admin, kind):
    return admin.info("errorstats").get(f"errorstat_{kind}", {"count": 0})["count"]


def _is_replicated(server):
    replication = server.info("replication")
    return replication["slave0"]["offset"] == replication["master_repl_offset"]


def test_a_server_that_was_full_and_has_room_again_loses_nothing(server, fleet, calls):
    client = fleet(server.url)
    run = submit(client)
    under_way(run)
    with server.client() as admin:
        admin.config_set("maxmemory", 1)
        # A client that connects now is refused: no broken connection, but it passes as well.
        admin.client_kill_filter(_type="normal", skipme=True)
        wait_for(lambda: _refusals(admin, "OOM") > 20, "the worker was refused repeatedly")
        admin.config_set("maxmemory", 0)
    assert_complete(run, calls)
    assert_consumes(client, calls)


def test_a_server_that_was_a_replica_for_a_while_loses_nothing(server, fleet, calls):
    """As after a failover, where connections lead to the old master."""
    client = fleet(server.url)
    run = submit(client)
    under_way(run)
    with server.client() as admin:
        # Of a master that does not answer, so that it keeps its data.
        admin.slaveof("127.0.0.1", 9)
        wait_for(lambda: _refusals(admin, "READONLY") > 20, "the worker was refused repeatedly")
        admin.slaveof()
    assert_complete(run, calls)
    assert_consumes(client, calls)


def test_connections_that_are_reset_again_and_again_lose_nothing(server, fleet, calls):
    client = fleet(server.url)
    run = submit(client)
    for share in (0.1, 0.3, 0.5, 0.7):
        under_way(run, share)
        with server.client() as admin:
            admin.client_kill_filter(_type="normal", skipme=True)
    assert_complete(run, calls)
    assert_consumes(client, calls)


def test_a_server_that_is_started_again_with_its_log_loses_nothing(server, fleet, calls):
    client = fleet(server.url)
    run = submit(client)
    under_way(run)
    server.kill()
    server.start()
    assert_complete(run, calls)
    assert_consumes(client, calls)


def test_a_server_that_hangs_longer_than_leases_last_loses_nothing(server, fleet, calls):
    client = fleet(server.url)
    run = submit(client)
    under_way(run)
    server.signal(signal.SIGSTOP)
    # Nothing tells when a stopped server has missed enough: this is the time itself.
    time.sleep(9)
    server.signal(signal.SIGCONT)
    assert_complete(run, calls)
    assert_consumes(client, calls)


FANOUT = str(Path(sys.executable).with_name("fanout"))
SAID = {
    "MISCONF": "it cannot save to its disk",
    "NOREPLICAS": "too few replicas are connected",
    "BUSY": "SCRIPT KILL",
    "NOPERM": "does not let its user do this",
}


def settings_of(server):
    return load_settings(broker_url=server.url)


@pytest.mark.parametrize("way", WAYS)
def test_writes_that_are_refused_for_a_while_cost_nothing(way, server, fleet, calls):
    client = fleet(server.url)
    run = submit(client, MANY)
    wait_for(lambda: sum(calls.count().values()) >= MANY // 4, "a quarter was called")
    with refusing(way, port=server.port, folder=server.folder):
        began = time.monotonic()
        assert any(SAID[way] in f"{f.found} {f.advice}" for f in examine(settings_of(server), ()))
        probe = subprocess.run(
            [FANOUT, "probe", "--broker-url", server.url, "--within", "60"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        # What only its user may not do it says when the workers have fallen silent.
        assert probe.returncode == (SAID[way] in probe.stderr)
        assert probe.returncode == 1 or way == "NOPERM"
        time.sleep(max(0.0, REFUSED_S - (time.monotonic() - began)))
    assert_complete(run, calls, timeout_s=120)
    assert set(calls.count().values()) == {1}


LOOPING = """
import asyncio, os, time
LOG = {log!r}
async def model(prompt):
    with open(LOG, 'a') as log:
        log.write(os.environ['WHO'] + ' ' + prompt + '\\n')
    if os.environ['WHO'] == 'sick':
        time.sleep(600)
    return 'answer to ' + prompt
"""


def test_a_worker_whose_branches_stand_still_loses_them_to_another(
    server,
    start_worker,
    functions,
    tmp_path,
):
    """Its process lives, and says so; its loop does not turn any more."""
    log = tmp_path / "who"
    path = functions(LOOPING.format(log=str(log)), "functions_under_test")
    env = {**QUICK, "PYTHONPATH": path}
    sick = start_worker("--concurrency", "4", url=server.url, WHO="sick", **env)
    with Client(server.url) as client:
        spec = make_spec(model="functions_under_test:model", prompt="{input}", timeout_s=1)
        run = client.submit(spec, [f"text {number}" for number in range(12)])
        wait_for(log.exists, "the sick worker has begun")
        start_worker("--concurrency", "4", url=server.url, WHO="well", **env)
        status = run.wait(120)
        assert status.succeeded == 12

        def stuck():
            (record,) = [w for w in client.fleet().workers if w.name == sick.name]
            return record.stuck

        wait_for(lambda: stuck() > 0, "it says so itself")
    assert "is left to other workers" in sick.log.read_text()
    sick.kill()


BLOCKED_ONCE = """
import pathlib, time
HERE = pathlib.Path({folder!r})
async def model(prompt):
    with (HERE / "who").open("a") as log:
        log.write("a call\\n")
    if not (HERE / "blocked").exists():
        (HERE / "blocked").touch()
        time.sleep(600)
    return "answer to " + prompt
"""


def test_a_prefork_child_whose_loop_is_blocked_ends_and_its_branch_is_made_again(
    server, start_worker, functions, tmp_path
):
    path = functions(BLOCKED_ONCE.format(folder=str(tmp_path)), "functions_under_test")
    env = {**QUICK, "PYTHONPATH": path, "FANOUT_POOL": "prefork"}
    worker = start_worker("--concurrency", "2", url=server.url, **env)
    with Client(server.url) as client:
        spec = make_spec(model="functions_under_test:model", prompt="{input}", timeout_s=3)
        run = client.submit(spec, ["text 1", "text 2", "text 3"])
        assert run.wait(120).succeeded == 3
    assert (tmp_path / "who").read_text().count("a call") == 4
    assert "and its process ends" in worker.log.read_text()


LOGS = """
import pathlib, time
LOG = pathlib.Path({log!r})

def model(prompt):
    with LOG.open("a") as log:
        log.write(prompt + "\\n")
    # The first ones until their process is killed, the others longer than a further try takes to come.
    time.sleep(4 if LOG.with_name("killed").exists() else 600)
    return "answer to " + prompt
"""


@pytest.mark.parametrize("way", ["MISCONF", None])
def test_a_call_that_a_child_died_in_is_made_once_more_with_any_fate_of_its_message(
    way, server, start_worker, functions, tmp_path
):
    """Its parent publishes a further try, when another worker has begun what came back.

    The parent was silent meanwhile: refused, or stopped.
    """
    log = tmp_path / "calls.log"
    path = functions(LOGS.format(log=str(log)), "functions_under_test")
    env = {**QUICK, "PYTHONPATH": path}
    worker = start_worker("--concurrency", "4", url=server.url, FANOUT_POOL="prefork", **env)
    children = set(worker.children())

    def calls():
        return Counter(log.read_text().splitlines()) if log.exists() else Counter()

    with Client(server.url) as client:
        spec = make_spec(model="functions_under_test:model", prompt="{input}", reduce="concat")
        run = client.submit(spec, [f"text {number} of 4" for number in range(4)])
        wait_for(lambda: calls().total() == 4, "all calls are under way")
        start_worker("--concurrency", "8", url=server.url, **env)
        with ExitStack() as stack, server.client() as admin:
            if way:
                stack.enter_context(refusing(way, port=server.port, folder=server.folder))
                # They come back with their connection, too.
                admin.client_kill_filter(_type="normal", skipme=True)
            else:
                worker.signal(signal.SIGSTOP)
            (tmp_path / "killed").touch()
            for child in children:
                os.kill(child, signal.SIGKILL)
            if way:
                wait_for(
                    lambda: worker.log.read_text().count("comes again") >= 4,
                    "no further try was taken",
                )
                worker.signal(signal.SIGSTOP)
        wait_for(lambda: calls().total() == 8, "the other worker has begun them")
        worker.signal(signal.SIGCONT)
        assert run.wait(120).succeeded == 4
        assert run.result().aggregated.count("answer to") == 4
    assert set(calls().values()) == {2}, "each call that was lost is made once more"


def test_while_a_worker_can_open_nothing_no_answer_is_lost_and_no_call_made_twice(
    server, start_worker, calls
):
    worker = start_worker("--concurrency", "16", url=server.url, PYTHONPATH=calls.path, **QUICK)
    process = psutil.Process(worker.process.pid)
    soft, hard = process.rlimit(psutil.RLIMIT_NOFILE)
    with Client(server.url) as client:
        run = submit(client, MANY)
        wait_for(lambda: sum(calls.count().values()) >= MANY // 4, "a quarter was called")
        # Fewer than it has open. What it had is lost besides, so that it needs others.
        process.rlimit(psutil.RLIMIT_NOFILE, (process.num_fds() // 2, hard))
        with server.client() as admin:
            admin.client_kill_filter(_type="normal", skipme=True)
        time.sleep(REFUSED_S)
        process.rlimit(psutil.RLIMIT_NOFILE, (soft, hard))
        run.wait(120)
        assert run.status().succeeded == MANY
        assert run.result().aggregated.count("answer to") == MANY
    assert set(calls.count().values()) == {1}
