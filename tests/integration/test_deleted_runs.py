"""What is left of a run that was deleted: nothing, in the store and in the broker."""

from __future__ import annotations

import asyncio
import json
import signal
from types import SimpleNamespace

import pytest
import redis
from celery.app.task import Context

from fanout import UnknownRunError
from fanout.broker import app as broker
from fanout.broker.inspection import UNACKED, UNACKED_INDEX
from fanout.broker.publisher import Publisher
from fanout.core.ids import ShardId, StageId
from fanout.core.queue_names import BRANCHES_QUEUE, backlogs_of
from fanout.core.settings import load_settings
from fanout.core.spec import make_spec

from .conftest import wait_for, waiting

SLOW = {"model": "fake?latency_s=600", "prompt": "{input}"}


def submit(client, count=40, **fields):
    fields = {"model": "fake", "prompt": "{input}", "reduce": "concat", **fields}
    return client.submit(make_spec(**fields), [f"text {i}" for i in range(count)])


def traces(broker_url, run_id):
    """Every key of the server that names the run, or holds something that does."""
    word = run_id.encode()
    found = []
    with redis.Redis.from_url(broker_url) as server:
        for key in server.scan_iter(count=1000):
            kind = server.type(key)
            read = {
                # It has just gone.
                b"none": lambda _key: [],
                b"string": lambda key: [server.get(key) or b""],
                b"list": lambda key: server.lrange(key, 0, -1),
                b"set": server.smembers,
                b"zset": lambda key: server.zrange(key, 0, -1),
                b"hash": lambda key: [
                    part for pair in server.hgetall(key).items() for part in pair
                ],
            }[kind]
            if word in key or any(word in value for value in read(key)):
                found.append(key)
    return found


def finished(client, start_worker):
    start_worker("--concurrency", "8")
    run = submit(client, model="fake?fail_rate=0.3", retries={"max_attempts": 1})
    run.wait(120)
    run.retry_failed()
    run.wait(120)
    return run


def running(client, start_worker):
    start_worker("--concurrency", "8")
    run = submit(client, **SLOW)
    wait_for(lambda: client.fleet().leases.taken >= 8, "calls are in flight")
    return run


def being_counted(client, start_worker):
    start_worker("--concurrency", "8")
    run = submit(client, 1_000, model="fake?latency_s=0.02")
    wait_for(lambda: run.status().done > 20, "branches end all the time")
    return run


def limited(client, start_worker):
    start_worker("--concurrency", "8")
    run = submit(client, **SLOW, max_workers=2)
    wait_for(lambda: client.fleet().leases.taken >= 2, "calls are in flight")
    return run


def paused(client, start_worker):
    run = submit(client, **SLOW)
    run.pause()
    start_worker("--concurrency", "8")
    wait_for(lambda: client.fleet().queues[1].waiting == 0, "branches are parked")
    return run


def without_workers(client, _start_worker):
    return submit(client)


def half_enqueued(client, _start_worker):
    class Died(BaseException):
        pass

    def documents():
        yield from (f"text {i}" for i in range(700))
        raise Died

    ids = []
    with pytest.raises(Died):
        client.submit(make_spec(**SLOW), documents(), on_created=ids.append)
    return client.run(ids[0])


STATES = [finished, running, being_counted, limited, paused, without_workers, half_enqueued]


@pytest.mark.parametrize("state", STATES)
def test_a_deleted_run_leaves_nothing_behind(state, client, start_worker, broker_url):
    run = state(client, start_worker)
    assert traces(broker_url, run.run_id)
    run.delete()
    wait_for(lambda: not traces(broker_url, run.run_id), "all of it is gone", timeout_s=120)
    # What was in flight is none the wiser, and what others do goes on.
    if client.workers():
        assert submit(client, 3).wait(120).succeeded == 3
    assert traces(broker_url, run.run_id) == []


@pytest.fixture
def db(broker_url):
    with redis.Redis.from_url(broker_url) as client:
        yield client


def member(publisher, run_id, position):
    """A branch that has ended, as the worker's pool tells of it."""
    group = ShardId(run_id, 0, 0).group_id
    task_id, callback = f"{group}/{position}", publisher._collect(ShardId(run_id, 0, 0))
    ids = {"id": task_id, "group": group, "group_index": position}
    context = Context(**ids, chord=callback, ignore_result=True)
    return SimpleNamespace(**ids, context=context), "SUCCESS", None


# What is in a worker's hands, or a client's, when the run is deleted, and is sent only then.
LATE = {
    "a shard's chord": lambda pub, run: pub.shard_chord(ShardId(run, 0, 0), range(500)),
    "a few branches": lambda pub, run: pub.branches(ShardId(run, 0, 0), range(3)),
    "many branches": lambda pub, run: pub.branches(ShardId(run, 0, 0), range(40)),
    "the size of a chord": lambda pub, run: pub._set_size(StageId(run, 0).group_id, 3),
    "a member": lambda pub, run: pub._backend.on_chord_parts_return([member(pub, run, 0)]),
    "members together": lambda pub, run: pub._backend.on_chord_parts_return(
        [member(pub, run, at) for at in range(4)]
    ),
}


@pytest.mark.parametrize("prefix", ["fanout", "other"])
def test_what_is_sent_of_a_run_that_is_gone_is_not_kept(broker_url, prefix, db):
    """In the server that is: no worker is there to clean up."""
    settings = load_settings(broker_url=broker_url, key_prefix=prefix)
    store = broker.make_store(settings)
    with broker.make_app(settings) as app:
        publisher = Publisher(app)
        for name, step in LATE.items():
            store.create_run("r1", spec="{}", created_at=1.0)
            before = set(traces(broker_url, "r1"))
            step(publisher, "r1")
            assert set(traces(broker_url, "r1")) - before, f"{name} is kept of a run that is there"
            store.begin_delete("r1")
            step(publisher, "r1")
            publisher.forget_run("r1", [1])
            step(publisher, "r1")
            store.delete_run("r1")
            step(publisher, "r1")
            assert traces(broker_url, "r1") == [], name
            assert waiting(db) == 0, name
        publisher.close()
    store.close()


def test_a_worker_that_stood_still_during_the_deletion_leaves_nothing(
    client, start_worker, broker_url, db
):
    """It drops its branches of the run, and the messages that come later."""
    worker = start_worker("--concurrency", "8", FANOUT_VISIBILITY_TIMEOUT_S="6")
    run = submit(client, 1_000, model="fake?latency_s=0.02")
    wait_for(lambda: run.status().done > 20, "branches end all the time")
    worker.signal(signal.SIGSTOP)
    message = db.lindex(backlogs_of(run.run_id)[0], 0)
    run.delete()
    with broker.make_app(load_settings(broker_url=broker_url)) as app:
        publisher = Publisher(app)
        publisher.expand(StageId(run.run_id, 0), [0])
        publisher.collect(ShardId(run.run_id, 0, 0))
        publisher.seal(StageId(run.run_id, 0), shards=2)
        publisher.aggregate(StageId(run.run_id, 0))
        publisher.close()
    # One that went back to its queue, and one whose worker died with it.
    db.lpush(BRANCHES_QUEUE, message)
    db.hset(UNACKED, "dead", json.dumps([json.loads(message), "", BRANCHES_QUEUE]))
    db.zadd(UNACKED_INDEX, {"dead": 1.0})
    worker.signal(signal.SIGCONT)
    wait_for(lambda: not traces(broker_url, run.run_id), "all of it is gone", timeout_s=120)
    assert submit(client, 3).wait(120).succeeded == 3
    assert traces(broker_url, run.run_id) == []


def test_a_deletion_that_died_half_way_is_carried_out_by_the_reaper(
    client, start_worker, broker_url
):
    start_worker("--concurrency", "8", FANOUT_REAPER_INTERVAL_S="1")
    run = submit(client, **SLOW)
    wait_for(lambda: client.fleet().leases.taken >= 8, "calls are in flight")
    run._store.begin_delete(run.run_id)
    wait_for(lambda: not traces(broker_url, run.run_id), "all of it is gone", timeout_s=120)


async def streamed(run):
    return [output async for output in run.astream()]


OPERATIONS = {
    "status": lambda run: run.status(),
    "spec": lambda run: run.spec,
    "wait": lambda run: run.wait(5),
    "model_limit": lambda run: run.model_limit(),
    "held_model": lambda run: run.held_model(),
    "result": lambda run: run.result(),
    "evaluation": lambda run: run.evaluation(),
    "aggregate": lambda run: run.aggregate(),
    "stored_result": lambda run: run.stored_result(),
    "aggregate_coverage": lambda run: run.aggregate_coverage(),
    "sources": lambda run: run.sources(),
    "stored_aggregate": lambda run: run.stored_aggregate(),
    "trace": lambda run: run.trace(0),
    "outcomes": lambda run: list(run.outcomes()),
    "report": lambda run: run.report(),
    "cancel": lambda run: run.cancel(),
    "pause": lambda run: run.pause(),
    "unpause": lambda run: run.unpause(),
    "retry_failed": lambda run: run.retry_failed(),
    "retry of a kind": lambda run: run.retry_failed(["timeout"]),
    "delete": lambda run: run.delete(),
    "stream": lambda run: list(run.stream()),
    "astream": lambda run: asyncio.run(streamed(run)),
    "await_": lambda run: asyncio.run(run.await_(5)),
    "acancel": lambda run: asyncio.run(run.acancel()),
}


def test_nothing_can_be_asked_of_a_deleted_run(client, broker_url):
    run = submit(client, 2)
    run.delete()
    # These need no record of the run.
    others = {"run_id", "problem", "write_problem", "typed", "plan_id"}
    public = {name for name in dir(type(run)) if not name.startswith("_")} - others
    assert public <= {name.split(" ")[0] for name in OPERATIONS}
    for name, operation in OPERATIONS.items():
        with pytest.raises(UnknownRunError):
            pytest.fail(f"{name} returned {operation(run)!r}")
    with pytest.raises(UnknownRunError):
        client.resume(run.run_id)
    assert traces(broker_url, run.run_id) == []
