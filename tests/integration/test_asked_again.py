"""Branches that ask again, or ask another model, on real workers: a stop costs the calls in flight."""

from __future__ import annotations

import signal
from collections import Counter

import pytest
import redis

from fanout import RunStatus
from fanout.core.spec import make_spec
from tests.integration.conftest import QUICK

from .conftest import wait_for

# Notes each call. One model never gives a label; the other one does so when it is asked again.
MODELS = """
import pathlib, time

log = pathlib.Path({log!r})

def called(model, prompt):
    with log.open("a") as file:
        file.write(repr((model, prompt)) + "\\n")
    time.sleep(0.1)

def stubborn(prompt):
    called("stubborn", prompt)
    return "maybe"

def careless(prompt):
    called("careless", prompt)
    return "good" if "You answered" in prompt else "perhaps"
"""
FIRST, SECOND = "functions_under_test:stubborn", "functions_under_test:careless"
DOCUMENTS, LANES = 3, 3
# For each sample, of which two agree: three calls to the first model, and two to the second.
CALLS = {"plain": 5 * DOCUMENTS, "sure": 2 * 5 * DOCUMENTS}
SURE = {"samples": 3, "certainty": 0.95}


@pytest.fixture
def models(functions, tmp_path):
    """Return the PYTHONPATH of the models, and what returns the calls that they have begun."""
    log = tmp_path / "calls"
    log.touch()
    path = functions(MODELS.format(log=str(log)))
    return path, lambda: Counter(log.read_text().splitlines())


def submit(client, name, **fields):
    spec = make_spec(
        model=FIRST, fallback=[SECOND], choices="good,bad", prompt=f"{name} {{input}} {{sample}}",
        **fields,
    )  # fmt: skip
    return client.submit(spec, [f"text-{number}" for number in range(DOCUMENTS)])


def require_all_once(run, name):
    result = run.result()
    assert result.status is RunStatus.SUCCEEDED
    assert {(branch.output, branch.model) for branch in result.branches} == {("good", SECOND)}
    assert result.usage.calls == CALLS[name]
    by_model = {model: usage.calls for model, usage in result.usage_by_model.items()}
    assert by_model == {FIRST: 3 * CALLS[name] // 5, SECOND: 2 * CALLS[name] // 5}


def test_a_killed_and_a_stopped_worker_cost_the_calls_in_flight(
    client, broker_url, start_worker, models
):
    path, calls = models
    env = {"PYTHONPATH": path, "FANOUT_GRACE_S": "0.1", **QUICK}
    killed, stopped = (start_worker("--concurrency", str(LANES), **env) for _ in range(2))
    runs = {"plain": submit(client, "plain"), "sure": submit(client, "sure", **SURE)}
    wait_for(lambda: calls().total() >= 16, "some have asked again")
    killed.kill()
    stopped.signal(signal.SIGTERM)
    third = start_worker("--concurrency", str(LANES), **env)
    for name, run in runs.items():
        assert run.wait(120).status is RunStatus.SUCCEEDED
        require_all_once(run, name)
    twice = {call for call, times in calls().items() if times > 1}
    assert len(twice) <= 2 * LANES, "only what was in flight was asked twice"
    assert calls().total() == sum(CALLS.values()) + len(twice)
    third.stop()
    with redis.Redis.from_url(broker_url) as server:
        assert server.keys("*checkpoints*") == []
