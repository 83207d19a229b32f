"""`fanout doctor` on servers as operators have them."""

from __future__ import annotations

import json

import pytest

from fanout import Client
from fanout.broker.app import BRANCHES_QUEUE, CONTROL_QUEUE
from tests.servers import ServerProcess

LIMIT = {"maxmemory": "100mb"}


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Start servers; they are shared by the tests of this module."""
    running = []

    def start(**config):
        running.append(ServerProcess(tmp_path_factory.mktemp("server"), **LIMIT, **config))
        return running[-1]

    yield start
    for server in running:
        server.kill()


@pytest.fixture(scope="module")
def good(servers):
    return servers(appendonly="yes")


@pytest.fixture
def doctor(fanout):
    def examine(*options, **env):
        done = fanout("doctor", "--json", *options, **env)
        report = json.loads(done.stdout)
        return done.status, report["state"], {row["check"]: row for row in report["findings"]}

    return examine


# What is a warning where the machine is so busy that an answer takes long.
TIMED = {"broker", "server clock", "worker clocks"}


def failed(findings):
    return {check for check, row in findings.items() if row["state"] == "fail"}


def test_a_badly_configured_server_fails_with_what_to_do(fanout, doctor, servers):
    server = servers(maxmemory_policy="allkeys-lru")
    status, state, findings = doctor("--broker-url", server.url)
    assert (status, state) == (1, "fail")
    assert failed(findings) == {"eviction", "persistence"}
    assert "maxmemory-policy noeviction" in findings["eviction"]["advice"]
    assert "appendonly yes" in findings["persistence"]["advice"]
    shown = fanout("doctor", FANOUT_BROKER_URL=server.url)
    assert shown.status == 1
    assert "fail  eviction" in shown.stdout
    assert "-> a full server would drop runs" in shown.stdout
    assert shown.stdout.splitlines()[-1].endswith(", 2 fail")


def test_a_well_configured_server_with_a_worker_passes(doctor, good, start_worker):
    start_worker("--concurrency", "3", url=good.url)
    models = ("--model", "fake", "--model", "anthropic/claude")
    status, state, findings = doctor("--broker-url", good.url, *models)
    assert failed(findings) == {"model anthropic/claude"}
    assert {check for check, row in findings.items() if row["state"] == "warn"} <= TIMED, findings
    assert findings["workers"]["found"] == "1 alive, 3 branches at once, 0 in flight"
    assert findings["model fake"]["found"] == "can be used on the workers (one of 1 was asked)"
    assert "ANTHROPIC_API_KEY" in findings["model anthropic/claude"]["advice"]
    assert (status, state) == (1, "fail")
    assert doctor("--broker-url", good.url, FANOUT_MODEL="fake")[0] == 0


def deleted(server, user):
    with server.client() as client:
        client.acl_deluser(user)


def test_what_a_user_may_not_see_is_a_warning(doctor, good, request):
    with good.client() as client:
        commands = ["+@all", "-config", "-info", "-acl"]
        client.acl_setuser(
            "app", enabled=True, passwords=["+hunter2"], keys=["*"], channels=["*"],
            commands=commands,
        )  # fmt: skip
    request.addfinalizer(lambda: deleted(good, "app"))
    url = good.url.replace("//", "//app:hunter2@")
    status, state, findings = doctor("--broker-url", url)
    assert (status, state) == (0, "warn")
    assert findings["eviction"]["found"] == "no permission to check (INFO)"
    assert findings["fsync"]["found"] == "no permission to check (CONFIG GET)"
    assert "an unknown user, with a password" in findings["access"]["found"]
    status, state, findings = doctor("--broker-url", url.replace("hunter2", "hunter3"))
    assert (status, failed(findings)) == (1, {"broker"})
    assert "refuses the credentials" in findings["broker"]["advice"]
    assert "hunter" not in json.dumps(findings)


def test_a_replica_and_a_run_that_stands_still_are_found(doctor, good, servers):
    with Client(good.url) as client, good.client() as server:
        run = client.submit({"model": "fake", "prompt": "{input}"}, ["a"])
        _, _, findings = doctor("--broker-url", good.url)
        assert findings["queues"]["state"] == "fail"
        assert f"no worker consumes {CONTROL_QUEUE}" in findings["queues"]["found"]
        assert findings["runs"]["found"] == "1 active"
        server.delete(CONTROL_QUEUE, BRANCHES_QUEUE)
        _, _, findings = doctor("--broker-url", good.url)
        assert findings["runs"]["found"] == f"1 active; no messages for {run.run_id}"
        run.delete()
    replica = servers(appendonly="yes", replicaof=f"127.0.0.1 {good.port}")
    status, _, findings = doctor("--broker-url", replica.url)
    assert (status, failed(findings)) == (1, {"role", "writes"})


def test_without_a_broker_what_a_run_would_start_is_checked(doctor, here):
    cache = str(here / "cache")
    status, _, findings = doctor("--model", "fake", FANOUT_CACHE_DIR=cache)
    assert status == 0
    assert findings["embedded server"]["found"].startswith(("started in ", "took "))
    assert findings["cache folder"]["found"].startswith(cache)
    assert findings["model fake"]["found"] == "can be used"
    (here / "file").touch()
    status, _, findings = doctor("--model", "typo", FANOUT_CACHE_DIR=str(here / "file"))
    assert status == 1
    assert findings["cache folder"]["state"] == "warn"
    assert "unknown model 'typo'" in findings["model typo"]["advice"]


def test_an_unreachable_server_and_wrong_usage_are_reported(fanout, doctor):
    status, _, findings = doctor("--broker-url", "redis://127.0.0.1:1/0")
    assert (status, failed(findings)) == (1, {"broker"})
    assert "no broker answers at 127.0.0.1:1" in findings["broker"]["advice"]
    assert fanout("doctor", "--broker-url", "amqp://x").status == 2
