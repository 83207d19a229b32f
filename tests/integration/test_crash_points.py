"""A death, a hang, a lost reply, a stop or a deletion at any step that leads to an aggregate: a sample.

``benchmarks/crash_points.py`` tries each of them.
"""

from __future__ import annotations

import pytest
import redis

from tests.crash_jobs import JOBS, fleet_of, problem_of
from tests.simulated_fleet import small_parts

# So many steps of each job, spread over all of them.
_TRIED = 3
_ACTS = ("kill", "hang", "cancel", "delete", "twice")


@pytest.fixture
def pool(broker_url, monkeypatch):
    made = redis.ConnectionPool.from_url(broker_url)
    with small_parts(monkeypatch):
        yield made
    made.disconnect()


@pytest.mark.parametrize("name", JOBS)
def test_an_aggregate_is_that_of_an_undisturbed_run(pool, name):
    job = JOBS[name]
    # The first one also loads scripts, which are steps, too.
    fleet_of(pool, job)
    undisturbed = fleet_of(pool, job)
    expected = undisturbed.account()
    assert expected["status"] == "succeeded"
    assert expected["value"]
    # Another event at another step for each job, so that together they have many of them.
    shift = [*JOBS].index(name)
    for number in range(_TRIED):
        at = 1 + (undisturbed.step * (2 * number + 1) // (2 * _TRIED) + shift) % undisturbed.step
        event = _ACTS[(number + shift) % len(_ACTS)]
        problem, _ = problem_of(pool, job, event=event, at=at, expected=expected)
        assert problem is None, f"{event} at step {at} of {undisturbed.step}: {problem}"
