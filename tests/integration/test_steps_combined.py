"""Steps beside other fields, in a fleet of all pools with its inputs in S3: exact calls, each paid once."""

from __future__ import annotations

import json
import threading
from collections import Counter

import pytest

from fanout.core.records import RunStatus
from fanout.core.spec import make_spec
from tests.integration.conftest import BUCKET
from tests.scripted_provider import ScriptedProvider, openai_reply

pytestmark = pytest.mark.integration

STEPS = [
    {"name": "kind", "prompt": "KIND {input}", "choices": ["bill", "letter"]},
    {"name": "size", "function": "functions_under_test:size"},
    {"name": "facts", "prompt": "FACTS {input}", "model": "openai/b", "when": {"kind": "bill"}},
    {"name": "note", "prompt": "NOTE {input} {size} {facts}"},
    {"name": "check", "judge": "note", "criteria": "polite", "model": "openai/judge"},
]
SIZE = """
async def size(branch):
    return len(branch["input"])
"""


class Provider(ScriptedProvider):
    """Counts calls by model and step; models that are broken refuse the key."""

    def __init__(self):
        super().__init__()
        self.respond = self._answer
        self.calls = Counter()
        self.broken = set()
        self.refuses = set()
        self._guard = threading.Lock()

    def _answer(self, _headers, request):
        if request is None:
            return 200, {"data": []}
        said = [one["content"] for one in request["messages"] if one["role"] != "system"]
        step = {"You": "check"}.get(said[0].split()[0], said[0].split()[0].lower())
        with self._guard:
            self.calls[request["model"], step] += 1
        if request["model"] in self.broken:
            return 401, {"error": {"message": "the key is wrong"}}
        if request["model"] in self.refuses:
            return 200, openai_reply(None, "content_filter", refusal="no")
        if step == "kind":
            return 200, openai_reply("bill" if "bill" in said[0] else "letter")
        if step == "check":
            verdict = {"reasons": "", "pass": "kind!" in said[0], "score": 1, "feedback": "be kind"}
            return 200, openai_reply(json.dumps(verdict))
        return 200, openai_reply("kind!" if len(said) > 1 else f"an answer of {request['model']}")

    def taken(self):
        """The calls since the last look."""
        with self._guard:
            found, self.calls = self.calls, Counter()
        return found


@pytest.fixture
def provider():
    made = Provider()
    yield made
    made.close()


def submit(client, texts, **fields):
    return client.submit(make_spec(**{"model": "openai/a", "steps": STEPS, **fields}), texts)


def test_steps_go_with_samples_models_reduces_priorities_pools_and_storage(
    client, provider, start_worker, functions, s3, monkeypatch
):
    monkeypatch.setenv("FANOUT_STORAGE", f"s3://{BUCKET}/steps")
    environment = {
        "OPENAI_BASE_URL": provider.url,
        "OPENAI_API_KEY": "k",
        "PYTHONPATH": functions(SIZE),
    }
    for pool in ([], ["--pool", "threads"], ["--pool", "prefork"]):
        start_worker(*pool, "--concurrency", "2", **environment)
    texts = [f"a {('bill', 'letter')[at % 2]} {at}" for at in range(4)]
    run = submit(
        client, texts, models=["openai/a", "openai/c"], samples=2, max_workers=3, priority=4,
        aggregate_prompt="SUM {input}", context_tokens=700, aggregate_max_tokens=64, group_by="model",
    )  # fmt: skip
    status = run.wait(120)
    assert (status.status, status.succeeded) == (RunStatus.SUCCEEDED, 16)
    calls = provider.taken()
    sums = sum(count for (_, step), count in calls.items() if step == "sum")
    assert sums >= 2
    # Two samples of four documents for each model. Those of both models ask for the same facts, and then
    # for a verdict on the same note.
    assert calls == Counter({
        ("a", "kind"): 8, ("c", "kind"): 8, ("b", "facts"): 4, ("a", "note"): 16, ("c", "note"): 16,
        ("judge", "check"): 24, ("a", "sum"): sums,
    })  # fmt: skip
    assert status.usage.calls == calls.total()
    assert s3.find(f"{BUCKET}/steps/{run.run_id}")
    assert {name: one.calls for name, one in status.usage_by_model.items()} == {
        "openai/a": 24 + sums, "openai/c": 24, "openai/b": 4, "openai/judge": 24,
    }  # fmt: skip


CHAIN = [
    {"name": "kind", "prompt": "KIND {input}"},
    {"name": "facts", "prompt": "FACTS {input} {kind}"},
    {"name": "note", "prompt": "NOTE {input} {facts}"},
]


def test_a_changed_later_step_uses_the_answers_of_earlier_ones(client, provider, start_worker):
    start_worker("--concurrency", "8", OPENAI_BASE_URL=provider.url, OPENAI_API_KEY="k")
    # The same document twice: its steps are made once.
    texts = ["one", "two", "three", "one"]
    status = submit(client, texts, steps=CHAIN, samples=2).wait(120)
    each = Counter({("a", "kind"): 6, ("a", "facts"): 6, ("a", "note"): 6})
    assert provider.taken() == each
    assert (status.succeeded, status.usage.calls, status.saved.calls) == (8, 18, 6)
    # One third of the calls.
    changed = [*CHAIN[:2], {**CHAIN[2], "prompt": "NOTE anew {input} {facts}"}]
    status = submit(client, texts, steps=changed, samples=2).wait(120)
    assert provider.taken() == Counter({("a", "note"): 6})
    assert (status.succeeded, status.usage.calls, status.saved.calls) == (8, 6, 18)
    # What all steps ask of another model is that model's, also where a branch fails.
    own = [{**one, "model": "openai/b"} for one in CHAIN]
    for refuses, failed in (set(), 0), ({"b"}, 2):
        provider.refuses = refuses
        run = submit(client, texts[:2], steps=own, cache=False)
        assert run.wait(120).failed == failed
        assert set(run.status().usage_by_model) == {"openai/b"}
        branches = run.result().branches
        assert {name for one in branches for name in one.usage_of} == {"openai/b"}
    provider.refuses = set()
    provider.taken()
    # A changed first step changes what follows only where its answer does.
    first = [{**CHAIN[0], "prompt": "KIND of {input}"}, *CHAIN[1:]]
    submit(client, texts, steps=first, samples=2).wait(120)
    assert provider.taken() == Counter({("a", "kind"): 6})


def test_a_broken_model_of_a_step_stops_the_run_or_its_route_alone(
    client, provider, start_worker, functions
):
    environment = {
        "OPENAI_BASE_URL": provider.url,
        "OPENAI_API_KEY": "k",
        "PYTHONPATH": functions(SIZE),
    }
    start_worker("--concurrency", "4", **environment)
    texts = [f"a {('bill', 'letter')[at % 2]} {at}" for at in range(40)]
    # Each branch needs the judge: no further branch begins.
    provider.broken = {"judge"}
    run = submit(client, texts)
    status = run.wait(120)
    assert status.status is RunStatus.FAILED
    assert "step check: " in status.error
    calls = provider.taken()
    assert calls["judge", "check"] <= 8
    assert calls["a", "kind"] < 40
    # The facts are for bills only: letters go on, and it is found out once.
    provider.broken = {"b"}
    run = submit(client, texts, cache=False)
    status = run.wait(120)
    assert (status.status, status.succeeded, status.failed) == (RunStatus.SUCCEEDED, 20, 20)
    assert provider.taken()["b", "facts"] <= 8
    provider.broken = set()
    assert run.retry_failed() == 20
    assert run.wait(120).succeeded == 40
    calls = provider.taken()
    assert calls["b", "facts"] == 20
    assert calls["a", "kind"] == 0
    # Another model takes over where the own one of a step refuses.
    provider.refuses = {"b", "judge"}
    status = submit(client, texts[:4], cache=False, fallback=["openai/a"]).wait(120)
    assert (status.succeeded, status.failed) == (4, 0)
    assert provider.taken() == Counter({
        ("a", "kind"): 4, ("b", "facts"): 2, ("a", "facts"): 2, ("a", "note"): 8,
        ("judge", "check"): 8, ("a", "check"): 8,
    })  # fmt: skip
    assert status.usage_by_model["openai/judge"].calls == 8
