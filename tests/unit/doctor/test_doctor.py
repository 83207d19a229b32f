"""From facts to findings: each row is a fact, and what the doctor says of it."""

from __future__ import annotations

import msgspec
import pytest

from fanout.broker.backlog import Queue
from fanout.core.fleet_records import WorkerRecord
from fanout.doctor import Finding, State, worst
from fanout.doctor.collect import storage_facts
from fanout.doctor.facts import (
    Connection,
    EmbeddedFacts,
    FleetFacts,
    MachineFacts,
    ModelFacts,
    ServerFacts,
    StorageFacts,
)
from fanout.doctor.fleet import fleet_findings, model_findings
from fanout.doctor.machine import (
    embedded_findings,
    machine_findings,
    storage_finding,
)
from fanout.doctor.server import connection_findings, server_findings
from fanout.stores.connection import is_loopback

MB = 1 << 20
INFO = {
    "server_name": "valkey", "valkey_version": "9.1.2", "redis_version": "7.2.4",
    "server_mode": "standalone", "role": "master", "maxmemory_policy": "noeviction",
    "aof_enabled": "1", "aof_last_write_status": "ok", "rdb_last_bgsave_status": "ok",
    "used_memory": str(300 * MB), "maxmemory": str(1_000 * MB), "mem_fragmentation_ratio": "1.1",
}  # fmt: skip
CONFIG = {
    "appendonly": "yes", "appendfsync": "everysec", "timeout": "0",
    "client-output-buffer-limit": "normal 0 0 0 slave 9 9 60 pubsub 33554432 8388608 60",
}  # fmt: skip
WORKER = WorkerRecord(
    name="w1@a", concurrency=8, in_flight=3, sent_at=1_000.0, seen_at=1_000.0, polled_at=999.0,
    version="0.1.0", wire=1, queues=("fanout.branches", "fanout.control"),
)  # fmt: skip
FLEET = FleetFacts(
    workers=[WORKER],
    queues=(Queue(name="fanout.control", waiting=0), Queue(name="fanout.branches", waiting=5)),
    active=2,
    wire=1,
    own_wire=1,
    own_version="0.1.0",
)
NEAR = Connection(
    address="redis:6379", is_loopback=False, has_tls=True, has_password=True, user="app",
    ping_ms=0.4, pings=20,
)  # fmt: skip


def changed(facts, **fields):
    return msgspec.structs.replace(facts, **fields)


def found(findings, check):
    [finding] = [finding for finding in findings if finding.check == check]
    assert (finding.advice is None) == (finding.state is State.OK)
    return finding


def of_server(info=(), config=(), ahead_s=0.0, **more):
    facts = ServerFacts(
        info=None if info is None else {**INFO, **dict(info)},
        config=None if config is None else {**CONFIG, **dict(config)},
        ahead_s=ahead_s,
        **more,
    )
    return list(server_findings(facts, visibility_timeout_s=30))


def test_functions_that_only_the_operator_can_load_are_asked_for():
    missing = found(of_server(functions_missing=3), "functions")
    assert (missing.state, missing.advice.split("`")[1]) == (State.WARN, "fanout setup-server")


@pytest.mark.parametrize("findings", [
    pytest.param(of_server, id="server"),
    pytest.param(lambda: list(fleet_findings(FLEET)), id="fleet"),
    pytest.param(lambda: list(connection_findings(NEAR)), id="connection"),
])  # fmt: skip
def test_where_all_is_well_nothing_is_advised(findings):
    assert {finding.state for finding in findings()} == {State.OK}


@pytest.mark.parametrize(
    ("info", "check", "state", "words"),
    [
        ({"maxmemory_policy": "allkeys-lru"}, "eviction", "fail", "allkeys-lru"),
        ({"maxmemory_policy": "volatile-ttl"}, "eviction", "fail", "volatile-ttl"),
        ({"aof_enabled": "0"}, "persistence", "fail", "append-only file off"),
        ({"aof_last_write_status": "err"}, "last writes to disk", "fail", "aof_last_write_status"),
        ({"rdb_last_bgsave_status": "err"}, "last writes to disk", "fail", "rdb_last_bgsave"),
        ({"loading": "1"}, "last writes to disk", "warn", "loading"),
        ({"role": "slave", "master_host": "m"}, "role", "fail", "a replica of m"),
        ({"connected_slaves": "2"}, "role", "ok", "2 replicas"),
        ({"maxmemory": "0"}, "memory", "warn", "no maxmemory"),
        ({"used_memory": str(740 * MB)}, "memory", "ok", "740 MB of 1,000 MB used (74%)"),
        ({"used_memory": str(760 * MB)}, "memory", "warn", "(76%)"),
        ({"used_memory": str(960 * MB)}, "memory", "fail", "(96%)"),
        ({"mem_fragmentation_ratio": "1.8"}, "fragmentation", "warn", "1.80"),
        (
            {"mem_fragmentation_ratio": "6", "used_memory": str(MB)},
            "fragmentation", "ok", "6.00",
        ),
        ({"server_name": "redis", "redis_version": "8.2.1", "valkey_version": ""},
         "server", "ok", "Redis 8.2.1"),
        ({"redis_version": "6.0.9", "valkey_version": ""}, "server", "fail", "6.0.9"),
        ({"server_mode": "cluster"}, "server", "fail", "a cluster"),
    ],
)  # fmt: skip
def test_what_a_server_says_of_itself(info, check, state, words):
    finding = found(of_server(info), check)
    assert (finding.state, words in finding.found) == (state, True), finding


@pytest.mark.parametrize(
    ("config", "check", "state", "words"),
    [
        ({"appendfsync": "always"}, "fsync", "ok", "always"),
        ({"appendfsync": "no"}, "fsync", "warn", "appendfsync no"),
        ({"appendonly": "no", "appendfsync": "no"}, "fsync", "ok", "without effect"),
        ({"client-output-buffer-limit": "pubsub 1048576 0 0"}, "subscribers", "warn", "1048576"),
        ({"client-output-buffer-limit": "pubsub 0 0 0"}, "subscribers", "warn", "pubsub 0 0 0"),
        ({"client-output-buffer-limit": ""}, "subscribers", "ok", "no client-output"),
        ({"timeout": "10"}, "idle connections", "warn", "after 10 s"),
        ({"timeout": "600"}, "idle connections", "ok", "after 600 s"),
    ],
)
def test_how_a_server_is_configured(config, check, state, words):
    finding = found(of_server(config=config), check)
    assert (finding.state, words in finding.found) == (state, True), finding


@pytest.mark.parametrize(
    ("ahead_s", "state", "words"),
    [
        (0.4, "ok", "0.40 s ahead of"),
        (-0.9, "ok", "0.90 s behind"),
        (2, "warn", "2.00 s ahead of"),
        (-11, "fail", "11.00 s behind"),
    ],
)
def test_a_clock_that_is_off_moves_leases(ahead_s, state, words):
    finding = found(of_server(ahead_s=ahead_s), "server clock")
    assert (finding.state, words in finding.found) == (state, True)


@pytest.mark.parametrize(
    ("facts", "command", "checks"),
    [
        ({"info": None}, "INFO", {"server", "role", "eviction", "persistence", "memory"}),
        ({"config": None}, "CONFIG GET", {"fsync", "subscribers", "idle connections"}),
        ({"ahead_s": None}, "TIME", {"server clock"}),
    ],
)
def test_what_a_user_may_not_see_is_said_and_is_no_failure(facts, command, checks):
    findings = [f for f in of_server(**facts) if f.state is not State.OK]
    assert {finding.check for finding in findings} >= checks
    assert {finding.state for finding in findings} == {State.WARN}
    assert {finding.found for finding in findings} == {f"no permission to check ({command})"}


@pytest.mark.parametrize(
    ("fields", "check", "state", "words"),
    [
        ({"ping_ms": 12.3}, "broker", "warn", "median round trip 12.3 ms of 20"),
        ({"has_password": False}, "access", "warn", "without a password"),
        ({"has_tls": False}, "access", "warn", "no TLS"),
        ({"has_tls": False, "has_password": False, "is_loopback": True}, "access", "ok", "no TLS"),
        ({"user": None}, "access", "ok", "an unknown user"),
    ],
)
def test_how_a_server_is_reached(fields, check, state, words):
    finding = found(connection_findings(changed(NEAR, **fields)), check)
    assert (finding.state, words in finding.found) == (state, True)


@pytest.mark.parametrize(
    ("fields", "check", "state", "words"),
    [
        ({}, "workers", "ok", "1 alive, 8 branches at once, 3 in flight"),
        ({"workers": []}, "workers", "warn", "none alive"),
        ({"workers": []}, "queues", "fail", "no worker consumes fanout.branches"),
        (
            {"workers": [changed(WORKER, queues=("fanout.branches",))]},
            "queues", "fail", "no worker consumes fanout.control",
        ),
        (
            {"workers": [], "queues": (Queue(name="fanout.control", waiting=0),)},
            "queues", "ok", "fanout.control 0 waiting",
        ),
        ({"workers": [changed(WORKER, polled_at=960.0)]}, "consumers", "fail", "w1@a"),
        ({"workers": [changed(WORKER, polled_at=0.0)]}, "consumers", "ok", "all take messages"),
        ({"workers": [changed(WORKER, stuck=3)]}, "consumers", "fail", "3 branches make no progr"),
        ({"workers": [changed(WORKER, problem="/x has no marker")]}, "consumers", "fail", "w1@a"),
        ({"own_version": "0.2.0"}, "versions", "warn", "0.1.0, 0.2.0 (here 0.2.0)"),
        ({"workers": [changed(WORKER, sent_at=1_003.0)]}, "worker clocks", "warn", "w1@a"),
        ({"workers": [changed(WORKER, sent_at=980.0)]}, "worker clocks", "fail", "20.00 s behind"),
        ({"wire": None}, "wire format", "ok", "not set yet"),
        ({"wire": 2}, "wire format", "fail", "speaks version 1 of the wire format, the fleet"),
        ({"workers": [WORKER, changed(WORKER, wire=2)]}, "wire format", "fail", "w1@a"),
        ({"stalled": {"r1": "running"}}, "runs", "warn", "2 active; no messages for r1"),
        ({"stalled": None}, "runs", "warn", "no permission to check (LRANGE"),
        ({"paused": 3}, "runs", "ok", "2 active, 3 paused"),
        ({"other_prefixes": ("team",)}, "key prefix", "fail", "in the same database team:"),
    ],
)  # fmt: skip
def test_what_a_fleet_is_like(fields, check, state, words):
    finding = found(fleet_findings(changed(FLEET, **fields)), check)
    assert (finding.state, words in finding.found) == (state, True), finding


def test_a_run_whose_client_died_is_to_be_resumed_and_another_to_be_healed():
    halves = changed(FLEET, stalled={"r1": "running", "r2": "enqueuing"})
    assert "fanout resume r2" in found(fleet_findings(halves), "runs").advice
    rest = changed(FLEET, stalled={f"r{i}": "running" for i in range(9)})
    finding = found(fleet_findings(rest), "runs")
    assert "`fanout heal`" in finding.advice
    assert finding.found.endswith("r0, r1, r2, r3, r4 and 4 more")


@pytest.mark.parametrize(
    ("facts", "state", "words"),
    [
        ({"asked": 2}, "ok", "can be used on the workers (one of 2 was asked)"),
        ({"asked": 2, "problem": "no\nkey"}, "fail", "cannot be used on the workers"),
        ({"asked": 2, "is_answered": False}, "warn", "none of 2 workers has answered"),
        ({"asked": 0}, "warn", "there is no worker to ask; here it can be used"),
        ({"asked": 0, "problem": "no key"}, "warn", "here it cannot be used"),
        ({"asked": None}, "ok", "can be used"),
        ({"asked": None, "problem": "no key"}, "fail", "cannot be used"),
    ],
)
def test_whether_a_model_can_be_used(facts, state, words):
    [finding] = model_findings(ModelFacts(model="m", **facts))
    assert (finding.check, finding.state) == ("model m", state)
    assert words in finding.found
    if facts.get("problem"):
        assert " ".join(facts["problem"].split()) in finding.advice


@pytest.mark.parametrize(
    ("facts", "state"),
    [
        ({"batches": ""}, "ok"),
        ({"batches": "the key\nmay not"}, "warn"),
        ({"batches": None}, None),
        # What cannot be called at all is one finding.
        ({"batches": "", "problem": "no key"}, None),
    ],
)
def test_whether_batches_of_a_model_can_be_made(facts, state):
    _, *findings = model_findings(ModelFacts(model="m", asked=2, **facts))
    assert [one.state for one in findings] == ([state] if state else [])
    assert all(one.check == "batches of m" for one in findings)
    if state == "warn":
        assert findings[0].advice == "the key may not"


@pytest.mark.parametrize(
    ("facts", "is_local_wanted", "check", "state"),
    [
        ({}, False, "embedded server", "ok"),
        ({"start_s": 9.0}, False, "embedded server", "warn"),
        ({"start_s": None, "start_problem": "no"}, False, "embedded server", "fail"),
        ({"cache_problem": "Read-only file system"}, False, "cache folder", "warn"),
        ({"cache_problem": "Read-only file system"}, True, "cache folder", "fail"),
        ({"has_extra": False}, False, "local model", "warn"),
        ({"has_extra": False}, True, "local model", "fail"),
        ({"has_weights": False}, True, "local model", "ok"),
        ({"has_weights": False, "has_pip": False}, True, "local model", "fail"),
    ],
)
def test_what_a_run_without_a_broker_needs(facts, is_local_wanted, check, state):
    facts = EmbeddedFacts(**{"start_s": 0.5, "cache_dir": "/c", **facts})
    findings = embedded_findings(facts, is_local_wanted=is_local_wanted)
    assert found(findings, check).state == state


@pytest.mark.parametrize(
    ("version", "wanted", "is_in"),
    [
        ("5.7.0", ">=5.7,<5.8", True),
        ("5.7.3rc1", "<5.8,>=5.7", True),
        ("5.8.0", ">=5.7,<5.8", False),
        ("5.6.2", ">=5.7,<5.8", False),
        ("10.0", ">=8.0", True),
        ("8", ">=8.0", True),
        ("1.0", "", True),
    ],
)
def test_a_library_must_be_within_its_bounds(version, wanted, is_in):
    facts = MachineFacts(python="3.11", fanout="0.1.0", libraries=(("x", wanted, version),))
    assert (found(machine_findings(facts), "libraries").state is State.OK) is is_in


def test_a_library_out_of_its_bounds_fails():
    libraries = (("celery", ">=5.7,<5.8", "5.8.1"), ("redis", ">=8.0", None))
    facts = MachineFacts(python="3.11", fanout="0.1.0", libraries=libraries)
    finding = found(machine_findings(facts), "libraries")
    assert finding.state is State.FAIL
    assert "celery must be >=5.7,<5.8, redis must be >=8.0" in finding.found


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [(host, True) for host in ("localhost", "127.0.0.2", "::1", None)]
    + [(host, False) for host in ("redis", "10.0.0.1", "0.0.0.0", "::", "queue.example", "")],
)
def test_which_hosts_are_this_machine(host, is_ours):
    assert is_loopback(host) is is_ours


def test_the_worst_finding_counts():
    findings = [Finding(check="a", state=state, found="") for state in State]
    assert worst([]) is State.OK
    assert worst(findings[:2]) is State.WARN
    assert worst(reversed(findings)) is State.FAIL


def test_a_storage_is_tried(tmp_path):
    state = storage_finding(storage_facts(str(tmp_path)))
    assert (state.state, state.advice) == (State.OK, None)
    assert str(tmp_path) in state.found
    lost = storage_finding(storage_facts(str(tmp_path / "none")))
    assert lost.state is State.FAIL
    assert "none cannot be written to: the folder is not there" in lost.found
    slow = storage_finding(StorageFacts(storage="s3://bucket", took_s=9.0))
    assert slow.state is State.WARN


def test_learnt_limits_are_found():
    limits = {"openai/x": "60 requests a minute", "openai/y": ""}
    learnt = found(fleet_findings(changed(FLEET, limits=limits)), "rate limits")
    assert learnt.found == "learnt: openai/x takes 60 requests a minute"
    assert not [one for one in fleet_findings(FLEET) if one.check == "rate limits"]
