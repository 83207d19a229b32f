"""What a fleet says of itself: a real server, a real worker, and sums that must agree."""

from __future__ import annotations

import time

import pytest

from fanout.broker.app import BRANCHES_QUEUE, CONTROL_QUEUE, WIRE_VERSION
from fanout.core.records import RunStatus

from .conftest import wait_for

pytestmark = pytest.mark.integration

BRANCHES = 120


def test_totals_of_a_fleet_agree_with_its_runs_to_the_last_branch(client, start_worker):
    start_worker("--concurrency", "16")
    model = "fake?fail_rate=0.2&fail_kind=server_error,timeout&latency_s=0.005"
    job = {"model": model, "prompt": "{input}", "retries": {"max_attempts": 1}}
    runs = [client.submit(job, [f"text {n}" for n in range(BRANCHES)]) for _ in range(2)]
    ended = [run.wait(120) for run in runs]
    totals = client.fleet().totals
    errors: dict[str, int] = {}
    for status in ended:
        assert status.latency.count == BRANCHES
        for kind, count in status.errors.items():
            errors[kind] = errors.get(kind, 0) + count
    assert totals.errors == errors
    assert totals.succeeded == sum(status.succeeded for status in ended)
    assert totals.usage.calls == sum(status.usage.calls for status in ended)
    assert totals.usage.output_tokens == sum(status.usage.output_tokens for status in ended)
    assert totals.latency.count == 2 * BRANCHES
    assert (totals.submitted, totals.ended) == (2, {RunStatus.SUCCEEDED: 2})
    now = time.time()
    ends = [outcome.ended_at for run in runs for outcome in run.outcomes()]
    assert all(status.created_at <= end <= now for status in ended for end in ends[-BRANCHES:])


def test_what_waits_is_seen_with_its_age(client):
    run = client.submit({"model": "fake", "prompt": "{input}"}, ["a"])
    fleet = client.fleet()
    control, branches = fleet.queues
    assert (control.name, branches.name) == (CONTROL_QUEUE, BRANCHES_QUEUE)
    # An expand for the shard, and the seal of its stage.
    assert control.waiting == 2
    assert 0 <= control.oldest_s < 60
    assert (branches.waiting, branches.oldest_s) == (0, None)
    assert (fleet.leases.taken, fleet.leases.oldest_s) == (0, None)
    assert fleet.runs == {RunStatus.RUNNING: 1}
    assert fleet.window.open == 1
    assert fleet.active == (run.run_id,)
    assert abs(fleet.read_at - time.time()) < 60
    assert fleet.memory.used_bytes > 0
    run.cancel()


def test_a_worker_says_what_it_is_and_how_full(client, start_worker):
    worker = start_worker("--concurrency", "3")
    job = {"model": "fake?latency_s=30", "prompt": "{input}"}
    run = client.submit(job, ["a"] * 5)

    def is_full() -> bool:
        [seen] = client.fleet().workers
        return bool(seen.in_flight == 3)

    wait_for(is_full, "the worker says that it is full")
    [seen] = client.fleet().workers
    assert (seen.name, seen.pid, seen.concurrency) == (worker.name, worker.process.pid, 3)
    assert (seen.pool, seen.wire, seen.processed) == ("asyncio", WIRE_VERSION, 0)
    assert set(seen.queues) == {CONTROL_QUEUE, BRANCHES_QUEUE}
    assert abs(seen.seen_at - seen.sent_at) < 60
    assert client.fleet().leases.taken >= 3
    run.cancel()
    run.wait(120)
