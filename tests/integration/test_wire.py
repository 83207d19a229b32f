"""Workers, clients and messages of another version of the wire format."""

from __future__ import annotations

import json

import pytest
import redis

from fanout import Client, RunStatus, WireVersionError
from fanout.broker import app as broker
from fanout.broker.app import BRANCHES_QUEUE, CONTROL_QUEUE
from fanout.core.spec import make_spec
from fanout.stores import RedisStore

from .conftest import wait_for

NEWER = {"fanout.broker.app:WIRE_VERSION": broker.WIRE_VERSION + 1}
# A worker that does not ask by itself, so that something else comes first.
SLOW = {"workers.consumer.presence:_EVERY_S": 600.0}
KEEN = {"FANOUT_REAPER_INTERVAL_S": "0.2", "FANOUT_STALL_S": "1"}


@pytest.fixture
def server_client(broker_url):
    with redis.Redis.from_url(broker_url) as client:
        yield client


@pytest.fixture
def newer(monkeypatch):
    """This process is newer than the fleet."""

    def patch():
        monkeypatch.setattr(broker, "WIRE_VERSION", broker.WIRE_VERSION + 1)

    return patch


def submit(client, count=20, **fields):
    spec = make_spec(model="fake", prompt="{input}", **fields)
    return client.submit(spec, [f"text {i}" for i in range(count)])


def go_over(server_client):
    """The fleet goes over to the next version, as one does while a worker is cut off."""
    server_client.delete("fanout:wire:holders")
    version = broker.WIRE_VERSION + 1
    assert RedisStore(server_client).claim_wire(version, holder="n", ttl_s=60) == version


def is_ready(worker):
    return f"{worker.name} ready." in worker.log.read_text()


def reason(worker):
    [line] = [line for line in worker.log.read_text().splitlines() if "CRITICAL" in line]
    return line


def test_a_worker_of_another_version_is_refused_and_the_run_waits_for_the_right_one(
    client, start_worker, server_client
):
    store = RedisStore(server_client)
    store.claim_wire(broker.WIRE_VERSION, holder="before", ttl_s=60)
    store.release_wire("before")
    run = submit(client)
    queued = server_client.lrange(CONTROL_QUEUE, 0, -1)
    wrong = start_worker(patches=NEWER, is_refused=True)
    assert wrong.process.wait(120) == 1
    newer = f"it speaks version {broker.WIRE_VERSION + 1} of the wire format"
    assert f"this worker has a newer fanout than the fleet: {newer}" in reason(wrong)
    assert "Traceback" not in wrong.log.read_text()
    assert server_client.lrange(CONTROL_QUEUE, 0, -1) == queued
    assert client.workers() == {}
    start_worker(**KEEN)
    assert run.wait(120).succeeded == 20


def test_where_no_worker_was_before_a_run_of_another_version_is_refused_and_no_worker(
    client, start_worker, server_client
):
    run = submit(client)
    start_worker(patches=NEWER, **KEEN)
    ended = run.wait(120)
    assert ended.status is RunStatus.FAILED
    own, others = broker.WIRE_VERSION, broker.WIRE_VERSION + 1
    assert (
        f"version {own} of the wire format, and the workers speak version {others}" in ended.error
    )
    assert RedisStore(server_client).wire() == others
    with pytest.raises(WireVersionError, match="this client has an older fanout than the fleet"):
        submit(client)


@pytest.mark.parametrize("notices", ["at its next beat", "when it connects again"])
def test_a_worker_stops_when_it_comes_back_to_a_fleet_that_has_gone_over(
    start_worker, server_client, notices
):
    if notices == "at its next beat":
        worker = start_worker(FANOUT_REAPER_INTERVAL_S="0")
        go_over(server_client)
    else:
        worker = start_worker(patches=SLOW, FANOUT_REAPER_INTERVAL_S="0")
        wait_for(lambda: is_ready(worker), "it consumes")
        go_over(server_client)
        server_client.client_kill_filter(_type="normal", skipme=True)
    assert worker.process.wait(120) == 1
    assert "this worker has an older fanout than the fleet" in reason(worker)
    assert RedisStore(server_client).workers() == []


def test_a_message_of_the_fleets_new_version_is_put_back_by_a_worker_that_was_left_behind(
    client, start_worker, server_client
):
    worker = start_worker(patches=SLOW, FANOUT_REAPER_INTERVAL_S="0")
    wait_for(lambda: is_ready(worker), "it consumes")
    go_over(server_client)
    message = {
        "body": "", "content-type": "application/json", "content-encoding": "utf-8",
        "headers": {"task": broker.BRANCH, "id": "r/0/0/0", "wire": broker.WIRE_VERSION + 1},
        "properties": {
            "delivery_tag": "t", "delivery_info": {"exchange": "", "routing_key": BRANCHES_QUEUE},
        },
    }  # fmt: skip
    server_client.lpush(BRANCHES_QUEUE, json.dumps(message))
    assert worker.process.wait(120) == 1
    [kept] = server_client.lrange(BRANCHES_QUEUE, 0, -1)
    assert json.loads(kept)["headers"]["id"] == "r/0/0/0"
    assert server_client.hlen("unacked") == 0
    assert "put back message r/0/0/0" in worker.log.read_text()


def test_a_stray_message_of_another_version_is_not_run_and_its_run_is_healed(
    client, start_worker, server_client
):
    run = submit(client)
    [raw] = server_client.lrange(CONTROL_QUEUE, 0, 0)
    stray = json.loads(raw)
    assert stray["headers"]["wire"] == broker.WIRE_VERSION
    stray["headers"]["wire"] += 1
    server_client.lset(CONTROL_QUEUE, 0, json.dumps(stray))
    worker = start_worker(**KEEN)
    assert run.wait(120).succeeded == 20
    assert f"dropped message {run.run_id}/0/" in worker.log.read_text()


def test_a_client_of_another_version_changes_nothing(client, server_client, newer, broker_url):
    run = submit(client)
    before = server_client.lrange(CONTROL_QUEUE, 0, -1)
    newer()
    with Client(broker_url) as late:
        for change in (
            lambda: submit(late),
            lambda: late.resume(run.run_id),
            late.heal,
            late.run(run.run_id).cancel,
            late.run(run.run_id).pause,
            late.run(run.run_id).unpause,
            late.run(run.run_id).retry_failed,
        ):
            with pytest.raises(WireVersionError, match="this client has a newer fanout"):
                change()
        assert [one.run_id for one in late.runs()] == [run.run_id]
    assert server_client.lrange(CONTROL_QUEUE, 0, -1) == before
    assert run.status().status is not RunStatus.CANCELLED


def test_every_message_of_a_run_says_its_version_also_those_that_celery_publishes(
    client, start_worker, server_client
):
    submit(client, count=1)
    start_worker("--queues", "control", **KEEN)
    wait_for(lambda: server_client.llen(BRANCHES_QUEUE) == 1, "the branch is published")
    [branch] = map(json.loads, server_client.lrange(BRANCHES_QUEUE, 0, -1))
    assert branch["headers"]["wire"] == broker.WIRE_VERSION
    import base64

    *_, embed = json.loads(base64.b64decode(branch["body"]))
    collect = embed["chord"]
    assert collect["options"]["headers"]["wire"] == broker.WIRE_VERSION
    assert collect["options"]["chord"]["options"]["headers"]["wire"] == broker.WIRE_VERSION
