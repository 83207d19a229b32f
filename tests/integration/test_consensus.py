"""Branches that ask until their majority is certain, on real workers: each answer is paid for once."""

from __future__ import annotations

import os
import signal
from collections import Counter

import pytest
import redis

from fanout import RunStatus
from fanout.core.spec import make_spec
from tests.integration.conftest import QUICK

from .conftest import wait_for

# Notes each call, and answers by the number of the sample: never certain before the last one.
MODEL = """
import pathlib, time

log = pathlib.Path({log!r})

def model(prompt):
    with log.open("a") as file:
        file.write(prompt + "\\n")
    time.sleep(0.15)
    return "odd" if int(prompt.split()[-1]) % 2 else "even"
"""
SAMPLES = 13


@pytest.fixture
def model(functions, tmp_path):
    """Return the PYTHONPATH of a model, and what returns the calls that it has begun, by prompt."""
    log = tmp_path / "calls"
    log.touch()
    path = functions(MODEL.format(log=str(log)))
    return path, lambda: Counter(log.read_text().splitlines())


def submit(client, count, **fields):
    fields = {"samples": SAMPLES, "certainty": 0.999, "reduce": "vote", **fields}
    spec = make_spec(model="functions_under_test:model", prompt="{input} {sample}", **fields)
    return client.submit(spec, [f"text-{number}" for number in range(count)])


def require_all(run, count):
    """Require the outcomes of all branches, with all that was paid for."""
    result = run.result()
    assert result.status is RunStatus.SUCCEEDED
    assert [branch.votes for branch in result.branches] == [{"even": 7, "odd": 6}] * count
    assert result.usage.calls == count * SAMPLES
    assert result.aggregated["votes"] == {"even": 7 * count, "odd": 6 * count}
    return result


def test_a_killed_worker_costs_the_calls_in_flight_and_a_pause_or_a_stop_costs_none(
    client, broker_url, start_worker, model
):
    path, calls = model
    worker = start_worker("--concurrency", "3", PYTHONPATH=path, **QUICK)
    run = submit(client, 4)
    wait_for(lambda: calls().total() >= 12, "some answers are there")
    worker.kill()
    begun = calls()
    second = start_worker("--concurrency", "3", PYTHONPATH=path, **QUICK)
    wait_for(lambda: calls().total() >= begun.total() + 6, "the calls go on")
    struck = {prompt for prompt, times in calls().items() if times > 1}
    assert len(struck) <= 3, "at most what was in flight"
    run.pause()
    with redis.Redis.from_url(broker_url) as server:
        parked = f"fanout:run:{run.run_id}:parked"
        wait_for(lambda: server.scard(parked) + run.status().done == 4, "all others are parked")
        assert run.status().done < 4
        assert server.hlen(f"fanout:run:{run.run_id}:s0:0:checkpoints") > 0
    run.unpause()
    paused_at = calls().total()
    wait_for(lambda: calls().total() >= paused_at + 3, "the calls go on")
    third = start_worker("--concurrency", "3", PYTHONPATH=path, **QUICK)
    second.signal(signal.SIGTERM)
    assert run.wait(120).status is RunStatus.SUCCEEDED
    require_all(run, 4)
    twice = {prompt for prompt, times in calls().items() if times > 1}
    assert len(twice) <= 3, "no answer was paid for twice but those in flight"
    assert calls().total() == 4 * SAMPLES + len(twice)
    third.stop()
    with redis.Redis.from_url(broker_url) as server:
        assert server.keys("*checkpoints*") == []


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_branch_goes_on_where_it_was_in_each_pool(client, start_worker, model, pool):
    path, calls = model
    worker = start_worker("--concurrency", "2", PYTHONPATH=path, FANOUT_POOL=pool, **QUICK)
    run = submit(client, 3, max_workers=2)
    wait_for(lambda: calls().total() >= 8, "some answers are there")
    if pool == "prefork":
        os.kill(worker.children()[0], signal.SIGKILL)
    else:
        run.pause()
        wait_for(lambda: run.status().status is RunStatus.PAUSED, "it is paused")
        run.unpause()
    assert run.wait(120).status is RunStatus.SUCCEEDED
    require_all(run, 3)
    assert calls().total() <= 3 * SAMPLES + (pool == "prefork")
