"""What is left of a run that was deleted: nothing, in the store and in the broker."""

from __future__ import annotations

import pytest
import redis

from fanout import UnknownRunError
from fanout.spec import make_spec

from .conftest import wait_for

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
    run.wait(60)
    run.retry_failed()
    run.wait(60)
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
    wait_for(lambda: not traces(broker_url, run.run_id), "all of it is gone", timeout_s=60)
    # What was in flight is none the wiser, and what others do goes on.
    if client.workers():
        assert submit(client, 3).wait(60).succeeded == 3
    assert traces(broker_url, run.run_id) == []


OPERATIONS = {
    "status": lambda run: run.status(),
    "spec": lambda run: run.spec,
    "wait": lambda run: run.wait(5),
    "model_limit": lambda run: run.model_limit(),
    "result": lambda run: run.result(),
    "aggregate": lambda run: run.aggregate(),
    "stored_result": lambda run: run.stored_result(),
    "outcomes": lambda run: list(run.outcomes()),
    "report": lambda run: run.report(),
    "cancel": lambda run: run.cancel(),
    "pause": lambda run: run.pause(),
    "unpause": lambda run: run.unpause(),
    "retry_failed": lambda run: run.retry_failed(),
    "retry of a kind": lambda run: run.retry_failed(["timeout"]),
    "delete": lambda run: run.delete(),
}


def test_nothing_can_be_asked_of_a_deleted_run(client, broker_url):
    run = submit(client, 2)
    run.delete()
    # These need no record of the run.
    others = {"run_id", "problem", "write_problem"}
    public = {name for name in dir(type(run)) if not name.startswith("_")} - others
    assert public <= {name.split(" ")[0] for name in OPERATIONS}
    for name, operation in OPERATIONS.items():
        with pytest.raises(UnknownRunError):
            pytest.fail(f"{name} returned {operation(run)!r}")
    with pytest.raises(UnknownRunError):
        client.resume(run.run_id)
    assert traces(broker_url, run.run_id) == []
