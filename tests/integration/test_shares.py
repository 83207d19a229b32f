"""Runs share the places of workers: with caps and priorities, and when a worker dies."""

from __future__ import annotations

import pytest

from fanout import RunStatus
from fanout.core.spec import make_spec
from tests.integration.conftest import wait_for

SLEEPS = """
import os, pathlib, time
folder = pathlib.Path({folder!r})
def model(prompt):
    run, _ = prompt.split()
    mine = folder / run / f"{{os.getpid()}}-{{time.monotonic_ns()}}"
    mine.touch()
    now = len(list((folder / run).iterdir()))
    until = time.monotonic() + {seconds}
    while time.monotonic() < until and not (folder / "hurry").exists():
        time.sleep(0.02)
    mine.unlink()
    return str(now)
"""


@pytest.fixture
def sleeper(functions, tmp_path):
    """Write a model whose answers are the calls of its run in flight; return its path."""

    def write(*runs, seconds=0.05):
        for run in runs:
            (tmp_path / "flight" / run).mkdir(parents=True)
        return functions(SLEEPS.format(folder=str(tmp_path / "flight"), seconds=seconds))

    return write


def hurry(tmp_path):
    """Have no call take long from now on."""
    (tmp_path / "flight" / "hurry").touch()


def submit(client, name, count, **fields):
    spec = make_spec(
        model="functions_under_test:model", prompt=f"{name} {{input}}", reduce="none", **fields
    )
    return client.submit(spec, [str(number) for number in range(count)])


def most(run):
    return max(int(outcome.output) for outcome in run.outcomes())


@pytest.mark.parametrize("pool", ["asyncio", "threads", "prefork"])
def test_what_waits_for_a_permit_leaves_its_place_to_other_runs(
    client, start_worker, sleeper, tmp_path, pool
):
    path = sleeper("capped", "free", seconds=0.4)
    worker = start_worker("--concurrency", "4", PYTHONPATH=path, FANOUT_POOL=pool)
    capped = submit(client, "capped", 60, max_workers=1)
    wait_for(lambda: capped.status().done > 1, "the capped run is under way")
    # Between two calls a process under load may have given its permit back.
    wait_for(lambda: capped.status().permits_used == 1, "its permit is in use")
    seen = capped.status()
    assert (seen.max_workers, seen.priority) == (1, 1.0)
    free = submit(client, "free", 12)
    assert free.wait(120).succeeded == 12
    assert capped.status().status is RunStatus.RUNNING
    assert most(free) >= 2, "it had the other places"
    assert (free.status().max_workers, free.status().permits_used) == (None, None)
    worker.stop()
    assert client.fleet().window.permits_used == 0, "a worker that stops gives them back"
    assert "HandedBackError" not in worker.log.read_text(), "to wait for a permit is no fault"
    hurry(tmp_path)
    start_worker("--concurrency", "4", PYTHONPATH=path, FANOUT_POOL=pool)
    assert capped.wait(120).succeeded == 60
    assert most(capped) == 1


def test_the_permits_of_a_worker_that_was_killed_come_back(client, start_worker, sleeper, tmp_path):
    path = sleeper("r", seconds=0.3)
    options = {"PYTHONPATH": path, "FANOUT_VISIBILITY_TIMEOUT_S": "6"}
    doomed = start_worker("--concurrency", "8", **options)
    run = submit(client, "r", 150, max_workers=4)
    wait_for(lambda: run.status().done > 8, "the first worker has the permits")
    other = start_worker("--concurrency", "8", **options)
    doomed.kill()
    hurry(tmp_path)
    assert run.wait(120).succeeded == 150
    assert other.process.poll() is None
    assert client.fleet().window.permits_used == 0, "and all are given back"


def test_a_run_of_a_higher_priority_has_more_places(client, start_worker, sleeper, tmp_path):
    path = sleeper("high", "low", seconds=0.4)
    start_worker("--concurrency", "10", PYTHONPATH=path)
    low = submit(client, "low", 200, priority=0.5)
    wait_for(lambda: low.status().done > 5, "it is under way")
    before = low.status().done
    high = submit(client, "high", 80, priority=2)
    assert high.status().to_dict()["priority"] == 2.0
    assert high.wait(120).succeeded == 80
    # Eight of ten places were for the one while both had branches at the worker: not five, nor all.
    assert most(high) >= 7
    assert low.status().done > before
    hurry(tmp_path)
    assert low.wait(120).status is RunStatus.SUCCEEDED


def test_a_small_run_begins_at_once_beside_a_large_one(client, start_worker, sleeper):
    path = sleeper("large", "small", seconds=0.2)
    start_worker("--concurrency", "4", PYTHONPATH=path)
    large = submit(client, "large", 3_000)
    wait_for(lambda: large.status().done > 8, "the large run is under way")
    small = submit(client, "small", 10)
    wait_for(lambda: small.status().done > 0, "its first branch has ended", timeout_s=120)
    assert small.wait(120).succeeded == 10
    assert large.status().done < 3_000
    large.cancel()
