"""The server's configuration and users as shipped: who can do their job, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from fanout import Client
from fanout.broker.app import make_app, make_store
from fanout.broker.publisher import Publisher
from fanout.broker.server_setup import all_scripts, count_missing
from fanout.core.budgets import BudgetLimits
from fanout.core.errors import BrokerError
from fanout.core.ids import StageId
from fanout.core.plan_runs import plan_run
from fanout.core.queue_names import BEHIND, backlogs_of
from fanout.core.settings import load_settings
from fanout.stores.blobs import MARKER, RUN_MARKER
from fanout.stores.functions import load
from tests.deployed import DeployedServer
from tests.needs import needs

from .conftest import wait_for

FANOUT = str(Path(sys.executable).parent / "fanout")
QUICK = {
    "FANOUT_VISIBILITY_TIMEOUT_S": "5",
    "FANOUT_REAPER_INTERVAL_S": "0.2",
    "FANOUT_STALL_S": "1",
    "FANOUT_BUDGET_CALLS_PER_DAY": "1000000",
}


class Worker:
    """`fanout worker`, in its role."""

    def __init__(self, server: DeployedServer, log: Path, **env: str) -> None:
        self.log = log
        self._env = {**server.environment("worker"), **QUICK, **env}
        with log.open("ab") as stream:
            self.process = subprocess.Popen(
                [FANOUT, "worker", "-c", "8", "--hostname", f"{log.stem}@test", "-E"],
                env={**os.environ, **self._env},
                cwd=log.parent,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )

    def end(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        self.process.wait(120)


@pytest.fixture
def role(monkeypatch):
    """Makes this process one of a role."""

    def become(server, name):
        for variable, value in server.environment(name).items():
            monkeypatch.setenv(variable, value)

    return become


def run_setup(server, role):
    """`fanout setup-server`, as the operator does it once."""
    env = {**os.environ, **server.environment(role)}
    command = [FANOUT, "setup-server", "--wait", "90"]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
    server = DeployedServer(tmp_path_factory.mktemp("deployed"), prefix="team.a")
    run_setup(server, "admin").check_returncode()
    yield server
    server.kill()


@pytest.fixture
def fleet(deployed, tmp_path, monkeypatch):
    """The server and a worker that consumes; the server's log of refusals is empty."""
    monkeypatch.setenv("FANOUT_KEY_PREFIX", "team.a")
    with deployed.client() as admin:
        admin.acl_log_reset()
    worker = Worker(deployed, tmp_path / "first.log")
    with Client(deployed.url_of("client")) as client:
        wait_for(lambda: client.workers() != {}, f"the worker consumes; see {worker.log}")
    yield deployed, worker
    worker.process.kill()
    worker.process.wait()


def ask(client, model, count=20, **more):
    job = {"model": model, "prompt": "{input}", **more}
    return client.submit(job, [f"text {number}" for number in range(count)])


def test_each_role_does_its_whole_job_and_is_refused_nothing(fleet, role, tmp_path):
    server, worker = fleet
    role(server, "client")
    with Client() as client:
        run = ask(client, "fake?fail_rate=0.5&fail_kind=content_filter", reduce="vote")
        assert run.wait(timeout_s=120).status == "succeeded"
        assert run.result().errors
        assert len(list(run.outcomes())) == 20
        assert run.retry_failed() > 0
        run.wait(timeout_s=120)
        tree = {"reduce": "llm", "aggregate_prompt": "{input}", "max_workers": 2}
        tree["budget"] = {"calls": 100}
        assert ask(client, "fake", **tree).wait(timeout_s=120).status == "succeeded"
        run.delete()

        slow = ask(client, "fake?latency_s=0.5", count=60)
        assert slow.pause()
        assert slow.unpause()
        # What the worker has in flight is given back by the server, to another one.
        wait_for(lambda: client.fleet().leases.taken > 0, "a branch is taken")
        worker.end(signal.SIGKILL)
        other = Worker(server, tmp_path / "second.log")
        try:
            assert slow.wait(timeout_s=120).status == "succeeded"
            stopped = ask(client, "fake?latency_s=5", count=40)
            wait_for(lambda: client.fleet().in_flight > 0, "a branch is in flight")
            assert stopped.cancel()
            assert stopped.wait(timeout_s=120).status == "cancelled"
            assert len(list(client.runs())) == 3
            monitor_as_flower_does(server)
            look_as_metrics_do(server, role)
            role(server, "admin")
            with Client() as admin:
                admin.heal()
        finally:
            other.end(signal.SIGTERM)
    assert other.process.returncode == 0, other.log.read_text()
    # A deletion tries to remove the messages of the run at once; otherwise workers drop them.
    tried = ("client", "key", "fanout.control")
    assert [each for each in server.denied() if each != tried] == []


def test_files_outside_the_server_come_and_go_with_their_runs(
    deployed, role, tmp_path, monkeypatch
):
    """The client is the first who uses the storage; a worker sweeps what it leaves."""
    storage = tmp_path / "storage"
    storage.mkdir()
    monkeypatch.setenv("FANOUT_STORAGE", str(storage))
    monkeypatch.setenv("FANOUT_KEY_PREFIX", "team.a")
    role(deployed, "client")
    with deployed.client() as admin:
        admin.acl_log_reset()
    with Client() as client:
        tree = {"reduce": "llm", "aggregate_prompt": "{input}", "samples": 2}
        first = ask(client, "fake?fail_rate=0.2&fail_kind=content_filter", **tree)
        worker = Worker(deployed, tmp_path / "third.log")
        try:
            first.wait(timeout_s=120)
            first.retry_failed()
            assert first.wait(timeout_s=120).done == 40
            marker = (storage / MARKER).read_text().strip()
            assert [path.name for path in storage.rglob(RUN_MARKER)] == [RUN_MARKER]
            first.delete()
            second = ask(client, "fake")
            assert second.wait(timeout_s=120).status == "succeeded"
        finally:
            worker.end(signal.SIGTERM)
        assert {path.name for path in storage.iterdir()} == {MARKER, second.run_id}
    with deployed.client() as admin:
        assert admin.hgetall("team.a:storages") == {str(storage).encode(): marker.encode()}
        entry = f"{second.run_id} {storage}".encode()
        assert entry in admin.smembers("team.a:inputs")
        # As when it expires. A hostile client has named another folder.
        admin.delete(f"team.a:run:{second.run_id}")
    (storage / "letters").mkdir()
    (storage / "letters" / "1.in.0123abcd").write_text("mine")
    with deployed.client("client") as hostile:
        hostile.sadd("team.a:inputs", f"letters {storage}")
    role(deployed, "worker")
    store = make_store(load_settings())
    # The other is the one that the client has deleted, of which workers had noted files.
    assert store.sweep_files() == 2
    store.close()
    assert {path.name for path in storage.iterdir()} == {MARKER, "letters"}
    with deployed.client() as admin:
        assert not admin.exists("team.a:inputs", "team.a:stored")
    tried = ("client", "key", "fanout.control")
    assert [each for each in deployed.denied() if each != tried] == []


def test_nodes_that_wait_for_a_turn_are_put_seen_and_deleted_by_those_who_may(
    deployed, role, monkeypatch
):
    monkeypatch.setenv("FANOUT_KEY_PREFIX", "team.a")
    run_id, backlogs = "0123abcd", backlogs_of("0123abcd")
    with deployed.client() as admin:
        admin.acl_log_reset()
        role(deployed, "client")
        with make_app(load_settings()) as app, closing(make_store(load_settings())) as store:
            store.create_run(run_id, spec="{}", created_at=1.0, max_workers=2)
            publisher = Publisher(app)
            for stage in (0, 1):
                publisher.shard_chord(StageId(run_id, stage).shard(0), range(10))
            assert [admin.llen(each) for each in backlogs] == [6, 10]
            role(deployed, "metrics")
            with closing(make_store(load_settings())) as reader:
                assert reader.stage_load(StageId(run_id, 0)).waiting_for_permits > 0
            store.delete_run(run_id)
        assert not admin.exists(*backlogs, BEHIND)
        admin.delete("fanout.branches")
    assert deployed.denied() == []


def monitor_as_flower_does(server):
    """Events as they come, and answers of workers to questions."""
    with_flower = load_settings(broker_url=server.url_of("flower"))
    with make_app(with_flower) as app:
        seen = []
        with app.connection_for_read() as connection:
            receiver = app.events.Receiver(connection, handlers={"*": seen.append})
            for _ in receiver.itercapture(limit=1, timeout=60, wakeup=True):
                break
        answers = app.control.inspect(timeout=60, limit=1).stats()
    assert answers, "no worker has answered"


def look_as_metrics_do(server, role):
    role(server, "metrics")
    with Client() as client:
        now = client.fleet()
    assert now.memory.limit_bytes == 2 * 2**30
    assert now.workers
    assert now.totals.succeeded


def test_metrics_come_while_a_model_splits_the_documents_of_a_run(deployed, role, monkeypatch):
    """Its calls are those of a run of its own, with another kind of id."""
    monkeypatch.setenv("FANOUT_KEY_PREFIX", "team.a")
    run_ids = {"0123abcd", plan_run("0123abcd")}
    with deployed.client() as admin:
        admin.acl_log_reset()
    role(deployed, "client")
    store, limits = make_store(load_settings()), BudgetLimits(calls=9)
    for run_id in run_ids:
        store.create_run(
            run_id, spec="{}", created_at=1.0, is_gathered=True, budget=(limits, limits)
        )
    role(deployed, "metrics")
    with Client() as client:
        assert run_ids <= set(client.fleet().active)
    assert deployed.denied() == []
    for run_id in run_ids:
        store.delete_run(run_id)
    store.close()


RUN = "team.a:run:0123abcd"


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("worker", "FLUSHALL"),
        ("worker", "FLUSHDB"),
        ("worker", "CONFIG SET maxmemory 1"),
        ("worker", "CONFIG GET *"),
        ("worker", "KEYS *"),
        ("worker", "SCAN 0"),
        ("worker", "ACL LIST"),
        ("worker", "SHUTDOWN"),
        ("worker", "MONITOR"),
        ("worker", "CLIENT KILL TYPE normal"),
        ("worker", "MODULE LIST"),
        ("worker", "REPLICAOF localhost 1"),
        ("worker", "GET another:run:0123abcd"),
        ("worker", "SET mine 1"),
        ("worker", "CLIENT LIST"),
        ("worker", "SCRIPT FLUSH"),
        ("worker", "FUNCTION LIST"),
        ("worker", "PUBLISH elsewhere x"),
        ("client", "FLUSHALL"),
        ("client", "CONFIG GET *"),
        ("client", "KEYS *"),
        ("client", "RPOP fanout.branches"),
        ("client", "BRPOP fanout.branches fanout.control 1"),
        ("client", "LRANGE fanout.branches 0 -1"),
        ("client", "DEL fanout.branches"),
        ("client", "RPOP fanout.branches.of.0123abcd"),
        ("client", "LPOP fanout.branches.of.0123abcd"),
        ("client", "LRANGE fanout.branches.of.0123abcd 0 -1"),
        ("client", "HGETALL unacked"),
        ("client", "HDEL unacked x"),
        ("client", "ZADD unacked_index 1 x"),
        ("client", "PUBLISH /0.celery.pidbox x"),
        ("client", "PSUBSCRIBE /0.celeryev/*"),
        ("client", "LRANGE celery-taskset-meta-x.j 0 -1"),
        ("client", "GET other:run:0123abcd"),
        ("flower", f"HGETALL {RUN}"),
        ("flower", f"GET {RUN}:s0:0:in"),
        ("flower", f"HGETALL {RUN}:s0:0:live"),
        ("flower", f"GET {RUN}:s0:0:out"),
        ("flower", f"GET {RUN}:result"),
        ("flower", "LPUSH fanout.branches x"),
        ("flower", "RPOP fanout.control"),
        ("flower", "LRANGE fanout.branches 0 -1"),
        ("flower", "LLEN fanout.branches.of.0123abcd"),
        ("flower", "HGETALL unacked"),
        ("flower", "KEYS *"),
        ("flower", "CONFIG GET *"),
        ("flower", "SREM _kombu.binding.fanout.control x"),
        *[
            (name, command)
            for name in ("worker", "client", "flower", "metrics")
            for command in (
                "EVAL return(1) 0",
                "EVALSHA abc 0",
                "EVAL_RO return(1) 0",
                "SCRIPT LOAD return(1)",
                "SCRIPT FLUSH",
                "SCRIPT EXISTS abc",
                "FUNCTION LOAD x",
                "FUNCTION FLUSH",
                "FUNCTION DELETE x",
                "FUNCTION RESTORE x",
                "FUNCTION KILL",
                "FUNCTION LIST",
            )
        ],
        ("metrics", "FCALL x 0"),
        ("client", "HSET team.a:worker-records w x"),
        ("client", "ZADD team.a:workers 1 w"),
        ("client", "ZADD team.a:holders 1 w"),
        ("client", "HSET team.a:limits b:fake 9999999999"),
        ("client", "DEL team.a:limits"),
        ("client", "SET team.a:lock:reaper x"),
        *[
            ("client", command.format(key=f"team.a:{key}"))
            for key in (
                "totals",
                "stored",
                "storages",
                "wire",
                "wire:holders",
                "wire:room",
                "tokens",
            )
            for command in (
                "SET {key} x",
                "DEL {key}",
                "UNLINK {key}",
                "EXPIRE {key} 1",
                "PERSIST {key}",
                "HSET {key} x 1",
                "HSETNX {key} x 1",
                "HINCRBY {key} x 1",
                "HDEL {key} x",
                "SADD {key} x",
                "SREM {key} x",
                "ZADD {key} 1 x",
                "ZREM {key} x",
                "LPUSH {key} x",
            )
        ],
        # What clients write, too, stays of its type.
        *[
            ("client", command.format(key=f"team.a:{key}"))
            for key in ("active", "inputs", "runs", "run-totals", "noted-storages")
            for command in (
                "SET {key} x",
                "DEL {key}",
                "UNLINK {key}",
                "EXPIRE {key} 1",
                "HSET {key} x 1",
                "LPUSH {key} x",
            )
        ],
        ("client", "ZADD team.a:active 1 x"),
        ("client", "ZADD team.a:inputs 1 x"),
        ("client", "SADD team.a:runs x"),
        ("client", "SADD team.a:run-totals x"),
        ("client", "SADD team.a:noted-storages x"),
        *[
            ("client", f"{command} team.a:cut-ratios x y")
            for command in ("DEL", "SADD", "LPUSH", "HDEL")
        ],
        ("client", "SINTERSTORE team.a:active team.a:inputs"),
        ("client", "RENAME team.a:inputs team.a:active"),
        ("client", "COPY team.a:run:0123abcd team.a:wire"),
        ("metrics", "HINCRBY team.a:run-totals submitted 1"),
        ("metrics", "SET team.a:totals x"),
        ("metrics", "HSET team.a:totals calls 1"),
        ("metrics", "HINCRBY team.a:totals calls 1"),
        ("metrics", f"DEL {RUN}"),
        ("metrics", f"HGETALL {RUN}:s0:0:live"),
        ("metrics", f"GET {RUN}:s0:0:in"),
        ("metrics", f"GET {RUN}:s0:0:out"),
        ("metrics", f"GET {RUN}:result"),
        ("metrics", "LPUSH fanout.branches x"),
        ("metrics", "LRANGE fanout.branches 0 -1"),
        ("metrics", "ZREM unacked_index x"),
        ("metrics", "PUBLISH /0.celery.pidbox x"),
        ("metrics", "EVAL return(1) 0"),
        ("metrics", "CONFIG GET *"),
    ],
)
def test_a_role_cannot(deployed, name, command):
    with deployed.client(name) as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*command.split(" "))


def test_a_script_can_do_no_more_than_its_user(deployed):
    forbidden = "return redis.call('FLUSHALL')"
    with deployed.client() as admin:
        load(admin, [forbidden])
    with (
        deployed.client("worker") as client,
        pytest.raises(redis.ResponseError, match="permission"),
    ):
        client.register_script(forbidden)()


def test_who_may_not_load_functions_is_told_who_does(tmp_path):
    server = DeployedServer(tmp_path)
    try:
        with server.client() as admin:
            assert count_missing(admin) == len(all_scripts())
        with (
            pytest.raises(BrokerError, match="fanout setup-server"),
            Client(server.url_of("client")) as client,
        ):
            ask(client, "fake")
        for _ in range(2):
            setup = run_setup(server, "admin")
            assert (setup.returncode, setup.stderr) == (0, "")
        with server.client("worker") as worker:
            assert count_missing(worker) == 0
        # They are in what a restart reads.
        server.kill()
        server.start()
        with server.client("worker") as worker:
            assert count_missing(worker) == 0
        refused = run_setup(server, "client")
        assert refused.returncode == 1
        assert "the functions cannot be loaded" in refused.stderr
    finally:
        server.kill()


def test_who_gives_no_password_can_do_nothing(deployed):
    anonymous = redis.Redis(port=deployed.port, retry=Retry(NoBackoff(), 0))
    with anonymous as client, pytest.raises(redis.AuthenticationError):
        client.ping()


def test_the_probe_can_ping_and_nothing_else(deployed):
    with redis.Redis(
        port=deployed.port, username="probe", password="x", retry=Retry(NoBackoff(), 0)
    ) as client:
        assert client.ping()
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.get("team.a:totals")


def test_the_server_keeps_what_it_acknowledged_and_refuses_what_it_cannot_keep(deployed):
    with deployed.client() as admin:
        assert admin.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        assert admin.config_get("append*") | {"appendonly": "yes", "appendfsync": "everysec"} == (
            admin.config_get("append*")
        )
        buffers = admin.config_get("client-output-buffer-limit")["client-output-buffer-limit"]
        assert f"pubsub {256 * 2**20} {128 * 2**20} 120" in buffers


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory):
    needs("redis-server", "openssl")
    server = DeployedServer(tmp_path_factory.mktemp("encrypted"), tls=True)
    yield server
    server.kill()


def test_a_certificate_that_nobody_vouches_for_is_refused(encrypted):
    settings = load_settings(broker_url=encrypted.url_of("client"))
    store = make_store(settings)
    with pytest.raises(BrokerError, match=r"is not to be trusted.*set FANOUT_BROKER_CA_FILE"):
        store.ping()
    store.close()


def test_celery_verifies_the_certificate_as_well(encrypted):
    settings = load_settings(broker_url=encrypted.url_of("worker"))
    with make_app(settings) as app:
        with app.connection_for_write() as connection, pytest.raises(Exception, match="VERIFY"):
            connection.connect()
        app.backend.connparams["retry"] = Retry(NoBackoff(), 0)
        with pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
            app.backend.client.ping()


def test_a_server_that_is_not_the_named_one_is_refused(encrypted):
    url = encrypted.url_of("client").replace("127.0.0.1", "127.0.0.2")
    settings = load_settings(broker_url=url, broker_ca_file=encrypted.ca_file)
    with pytest.raises(BrokerError):
        make_store(settings).ping()
