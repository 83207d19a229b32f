"""The worker's pool: branches on a loop, so many at a time, and every end of one seen to."""

from __future__ import annotations

import json
import signal
import time

import pytest
import redis

from fanout.broker.inspection import UNACKED, UNACKED_INDEX
from fanout.core.queue_names import BRANCHES_QUEUE
from fanout.core.records import RunStatus
from fanout.core.spec import make_spec
from workers.consumer.pool import taken_ahead

from .conftest import wait_for

COUNTING = """
import asyncio, pathlib
here = pathlib.Path({folder!r})
now = most = 0

async def model(prompt):
    global now, most
    now += 1
    most = max(most, now)
    (here / "most").write_text(str(most))
    with (here / "calls").open("a") as calls:
        calls.write(prompt + "\\n")
    await asyncio.sleep({seconds})
    now -= 1
    return "fine"
"""


@pytest.fixture
def model(functions, tmp_path):
    """Write a model that counts its calls; return what a worker needs to find it."""

    def write(seconds=0.02):
        source = COUNTING.format(folder=str(tmp_path), seconds=seconds)
        return {"PYTHONPATH": functions(source)}

    return write


def submit(client, count, **fields):
    job = {"model": "functions_under_test:model", "prompt": "{input}", "reduce": "vote", **fields}
    return client.submit(make_spec(**job), [f"text {i}" for i in range(count)])


def calls(tmp_path):
    return (tmp_path / "calls").read_text().splitlines()


@pytest.mark.parametrize(
    ("concurrency", "ahead"), [(1, 0), (7, 0), (8, 4), (200, 100), (1_000, 256), (10_000, 256)]
)
def test_a_few_more_are_taken_than_are_in_flight(concurrency, ahead):
    assert taken_ahead(concurrency) == ahead


def test_as_many_calls_are_in_flight_as_there_are_slots_although_more_are_taken(
    client, broker_url, start_worker, model, tmp_path
):
    start_worker("--concurrency", "16", **model(0.2))
    run = submit(client, 200)
    with redis.Redis.from_url(broker_url) as server:
        wait_for(lambda: server.hlen(UNACKED) == 24, "eight are taken ahead")
    assert run.wait(120).succeeded == 200
    assert (tmp_path / "most").read_text() == "16"


def test_what_a_worker_has_taken_ahead_goes_back_when_it_stops(
    client, broker_url, start_worker, model, tmp_path
):
    first = start_worker("--concurrency", "16", **model(2))
    run = submit(client, 30)
    wait_for(lambda: (tmp_path / "calls").exists() and len(calls(tmp_path)) == 16, "all call")
    first.signal(signal.SIGTERM)
    assert first.process.wait(120) == 0
    assert len(calls(tmp_path)) == 16, "those that had not begun were not waited for"
    assert run.status().done == 16
    with redis.Redis.from_url(broker_url) as server:
        assert server.hlen(UNACKED) == 0
    start_worker("--concurrency", "16", **model(0))
    assert run.wait(120).succeeded == 30
    assert len(calls(tmp_path)) == 30


PATCH = """
import workers.consumer.pool
real, failed = workers.consumer.pool.settle_branches, []
def settle_branches(context, ends):
    for request, _ in ends:
        # Twice: with others, and by itself.
        if request.id.endswith("/7") and len(failed) < 2:
            failed.append(1)
            raise RuntimeError("the text of a document")
    return real(context, ends)
workers.consumer.pool.settle_branches = settle_branches
"""


def test_a_branch_whose_end_is_not_taken_comes_again_and_calls_no_more(
    client, start_worker, model, tmp_path
):
    worker = start_worker("--concurrency", "4", patches={"exec": PATCH}, **model())
    run = submit(client, 40)
    assert run.wait(120).succeeded == 40
    assert len(calls(tmp_path)) == 40
    log = worker.log.read_text()
    assert "comes again: RuntimeError" in log
    assert "the text of a document" not in log


SHORT_LEASES = {"FANOUT_VISIBILITY_TIMEOUT_S": "5", "FANOUT_REAPER_INTERVAL_S": "0"}


def replace_by_a_copy(server):
    """Lose the one message that a worker has taken, while a copy of it waits in the queue."""
    # Those that seal the stage may be under way for a moment.
    wait_for(lambda: server.hlen(UNACKED) == 1, "a worker has only the message of the branch")
    [(tag, kept)] = server.hgetall(UNACKED).items()
    server.hdel(UNACKED, tag)
    server.zrem(UNACKED_INDEX, tag)
    server.lpush(BRANCHES_QUEUE, json.dumps(json.loads(kept)[0]))
    wait_for(lambda: server.hlen(UNACKED) == 1, "another worker has taken the copy")


@pytest.mark.parametrize("pool", ["asyncio", "threads", "prefork"])
def test_a_copy_that_came_while_its_holder_was_alive_is_there_when_that_dies(
    client, broker_url, start_worker, model, tmp_path, pool
):
    env = {**model("0 if (here / 'free').exists() else 600"), **SHORT_LEASES, "FANOUT_POOL": pool}
    first = start_worker("--concurrency", "1", **env)
    run = submit(client, 1)
    wait_for((tmp_path / "calls").exists, "the call is in flight")
    start_worker("--concurrency", "1", **env)
    with redis.Redis.from_url(broker_url) as server:
        replace_by_a_copy(server)
    (tmp_path / "free").touch()
    first.kill()
    assert run.wait(120).succeeded == 1
    assert len(calls(tmp_path)) == 2


def test_a_copy_whose_holder_ends_the_branch_makes_no_call_and_goes(
    client, broker_url, start_worker, model, tmp_path
):
    env = {**model(7), **SHORT_LEASES}
    for _ in range(2):
        start_worker("--concurrency", "1", **env)
    run = submit(client, 1)
    wait_for((tmp_path / "calls").exists, "the call is in flight")
    with redis.Redis.from_url(broker_url) as server:
        replace_by_a_copy(server)
        assert run.wait(120).succeeded == 1
        wait_for(lambda: not server.exists(UNACKED, BRANCHES_QUEUE), "the copy is gone")
    assert len(calls(tmp_path)) == 1


BUG = """
import workers.branch.answering
def values(*arguments, **options):
    raise KeyError("the text of a document")
workers.branch.answering.branch_values = values
"""


def test_a_fault_in_a_branch_is_seen_to_by_celery_and_recorded(client, start_worker, model):
    worker = start_worker("--concurrency", "4", patches={"exec": BUG}, **model())
    run = submit(client, 6)
    status = run.wait(120)
    assert (status.status, status.failed) == (RunStatus.FAILED, 6)
    assert {outcome.message for outcome in run.outcomes()} == {"the task ended with KeyError"}
    assert "the text of a document" not in worker.log.read_text()


@pytest.mark.parametrize("pool", ["asyncio", "threads", "prefork", "solo"])
def test_each_pool_processes_a_run(client, start_worker, model, tmp_path, pool):
    start_worker("--concurrency", "2", FANOUT_POOL=pool, **model(0))
    run = submit(client, 30, max_workers=2)
    assert run.wait(120).succeeded == 30
    assert sorted(calls(tmp_path)) == sorted(f"text {i}" for i in range(30))


@pytest.mark.parametrize("pool", ["asyncio", "threads", "prefork"])
def test_a_submission_does_not_wait_behind_long_calls(pool, client, start_worker):
    """All slots are taken by calls of a minute; prefork has nothing else to answer with."""
    worker = start_worker("--concurrency", "2", FANOUT_POOL=pool, FANOUT_GRACE_S="0")
    slow = make_spec(model="fake?latency_s=60", prompt="{input}")
    first = client.submit(slow, ["a", "b", "c", "d"])
    wait_for(lambda: any(w.in_flight == 2 for w in client.fleet().workers), "both slots are taken")
    began = time.monotonic()
    second = client.submit(slow, ["e", "f"])
    assert time.monotonic() - began < 30
    if pool != "prefork":
        # Also what follows the check is seen to.
        key = f"fanout:run:{second.run_id}:s0:0:state"
        with redis.Redis.from_url(client.broker_url) as server:
            wait_for(lambda: server.llen("fanout.branches") >= 2, "its branches are published")
            assert not server.exists(key)
    worker.kill()
    for run in (first, second):
        run.cancel()


@pytest.mark.parametrize("pool", ["asyncio", "threads", "prefork"])
def test_a_worker_counts_the_branches_that_have_ended_and_not_those_that_it_parks(
    client, broker_url, start_worker, model, pool
):
    often = {"workers.consumer.presence:_EVERY_S": 0.1}
    start_worker("--concurrency", "2", patches=often, **model(0.2), FANOUT_POOL=pool)

    def processed():
        return sum(worker.processed for worker in client.fleet().workers)

    run = submit(client, 12)
    wait_for(lambda: run.status().done >= 2, "some have ended")
    run.pause()
    with redis.Redis.from_url(broker_url) as server:
        wait_for(
            lambda: server.hlen(UNACKED) == server.llen(BRANCHES_QUEUE) == 0, "the rest is parked"
        )
    done = run.status().done
    assert done < 12
    wait_for(lambda: processed() == done, "the ends are counted")
    run.unpause()
    assert run.wait(120).succeeded == 12
    wait_for(lambda: processed() == 12, "the others are counted")
