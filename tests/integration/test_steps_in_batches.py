"""Chains, routes and judges in the batch lane: each step is in a further batch, and none is paid twice."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from fanout.core.records import ErrorKind, RunStatus
from fanout.core.spec import make_spec
from tests.batch_provider import BatchProvider, MadeBatch
from tests.integration.conftest import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration

FAST = {
    "FANOUT_REAPER_INTERVAL_S": "0.25",
    "FANOUT_VISIBILITY_TIMEOUT_S": "5",
    "FANOUT_BATCH_WAIT_S": "0.3",
    "FANOUT_BATCH_POLL_S": "0.2",
}
FACTS = {"type": "object", "properties": {"days": {"type": "integer"}}, "required": ["days"]}
STEPS: list[dict[str, Any]] = [
    {"name": "kind", "prompt": "KIND {input}", "choices": ["bill", "letter"]},
    {"name": "facts", "prompt": "FACTS {input}", "schema": FACTS, "when": {"kind": "bill"}},
    {"name": "greeting", "prompt": "GREETING {input}", "when": {"kind": "letter"}},
    {"name": "note", "prompt": "NOTE {input} {facts.days}{greeting}", "max_tokens": 60},
    {"name": "check", "judge": "note", "criteria": "It is polite."},
]
MODEL = "openai/gpt-5-mini"
# Of each document, half of them bills: two rounds of a note and its judge.
EACH = {"kind": 1, "facts": 0.5, "greeting": 0.5, "note": 2, "check": 2}


def step_of(prompt: str) -> str:
    head = prompt.partition(" ")[0]
    return {"A": "note", "You": "check"}.get(head, head.lower())


def reply(prompt: str) -> str:
    step = step_of(prompt)
    if step == "kind":
        return "bill" if "bill" in prompt else "letter"
    if step == "facts":
        return '{"days": 3}'
    if step == "check":
        verdict = {"reasons": "r", "pass": "kindly" in prompt, "score": 5, "feedback": "be kind"}
        return json.dumps(verdict)
    return "kindly" if prompt.startswith("A ") else f"re {prompt}"


@pytest.fixture
def batches() -> Iterator[BatchProvider]:
    provider = BatchProvider()
    provider.reply = reply
    yield provider
    provider.close()


def job(**fields):
    given = {
        "model": MODEL,
        "steps": STEPS,
        "lane": "batch",
        "max_tokens": 90,
        "budget": {"usd": 1},
    }
    return make_spec(**{**given, **fields})


def texts(word, count=6):
    return [f"a {('bill', 'letter')[number % 2]} {word} {number}" for number in range(count)]


def expected(count, **steps):
    return Counter({name: int(count * each) for name, each in {**EACH, **steps}.items()})


def has_ended(batch: MadeBatch) -> bool:
    return batch.state == "ended"


def usd(bills):
    """What the provider charges: half the price in a batch."""
    dollars = {"batch": 0.5, "flex": 0.5, "realtime": 1.0}
    return sum(dollars[bill.lane] * (bill.taken * 0.25 + bill.given * 2.0) / 1e6 for bill in bills)


def test_each_step_is_in_a_further_batch_and_paid_once(client, batches, start_worker):
    environment = {**FAST, **batches.environment}
    worker = start_worker("--concurrency", "8", **environment)
    run = client.submit(job(), texts("one"))
    status = run.wait(120)
    assert (status.succeeded, status.error) == (6, None)
    assert Counter(map(step_of, batches.answered)) == expected(6)
    # Kind, then both routes, a note, its judge, and both again.
    assert len(batches.batches) == 6
    assert status.usage.calls == len(batches.bills) == 36
    assert batches.singles == []
    assert status.usage.cost_usd == pytest.approx(usd(batches.bills), abs=1e-9)
    assert status.budget.spent.usd == pytest.approx(usd(batches.bills), abs=1e-8)
    assert {one.lane for branch in run.result().branches for one in branch.step_records} == {
        "batch"
    }

    # What is kept is not bought again; of a changed note, the steps before it are.
    again = client.submit(job(), texts("one")).wait(120)
    assert (again.succeeded, again.usage.calls, again.saved.calls) == (6, 0, 36)
    before = len(batches.answered)
    changed = [
        {**one, **({"system": "Be brief."} if one["name"] == "note" else {})} for one in STEPS
    ]
    status = client.submit(job(steps=changed), texts("one")).wait(120)
    # The judge sees the same task and answers.
    assert Counter(map(step_of, batches.answered[before:])) == Counter(note=12)
    assert (status.succeeded, status.usage.calls, status.saved.calls) == (6, 12, 24)

    # A worker is killed while the calls of a step are at the provider.
    before, batches.is_held = len(batches.bills), True
    run = client.submit(job(), texts("killed"))
    for _ in range(2):
        wait_for(lambda: batches.batches[-1].state == "running", "a step is at the provider", 120)
        last = batches.batches[-1]
        worker.kill()
        worker = start_worker("--concurrency", "8", **environment)
        batches.is_held = False
        wait_for(partial(has_ended, last), "it has ended", 120)
        batches.is_held = True
    batches.is_held = False
    status = run.wait(120)
    assert (status.succeeded, status.usage.calls) == (6, 36)
    assert Counter(map(step_of, batches.answered[-36:])) == expected(6)
    assert status.usage.cost_usd == pytest.approx(usd(batches.bills[before:]), abs=1e-9)
    assert batches.doubled == []


def test_a_run_between_steps_can_be_steered(client, batches, start_worker):
    start_worker("--concurrency", "8", **FAST, **batches.environment)

    def at_note(word, **fields):
        """Submit a run; return once its notes are at the provider."""
        run = client.submit(job(**fields), texts(word))
        wait_for(held, "the notes are at the provider", 120)
        return run

    def held():
        if not batches.batches:
            return False
        last = batches.batches[-1]
        batches.is_held = last.items[0][1]["messages"][-1]["content"].startswith("NOTE")
        return batches.is_held and last.state == "running"

    batches.polls = 2
    paused = at_note("paused")
    assert paused.pause()
    batches.is_held = False
    wait_for(lambda: batches.batches[-1].state == "ended", "the notes are made")
    assert paused.status().done == 0
    assert paused.unpause()
    status = paused.wait(120)
    assert (status.succeeded, status.usage.calls) == (6, 36)
    assert Counter(map(step_of, batches.answered)) == expected(6)

    before = len(batches.bills)
    cancelled = at_note("cancelled")
    cancelled.cancel()
    status = cancelled.wait(120)
    assert status.errors == {ErrorKind.CANCELLED: 6}
    batches.is_held = False
    # What the earlier steps have cost is in it, and in their outcomes.
    assert status.usage.cost_usd == pytest.approx(usd(batches.bills[before:]), abs=1e-9)
    assert sum(one.usage.calls for one in cancelled.result().branches) == status.usage.calls
    assert all("kind" in one.steps for one in cancelled.result().branches)
    wait_for(lambda: batches.batches[-1].state != "running", "the provider is told")
    # A retry goes on at the note.
    before = len(batches.bills)
    assert cancelled.retry_failed() == 6
    assert cancelled.wait(120).succeeded == 6
    made = [step_of(bill.body["messages"][-1]["content"]) for bill in batches.bills[before:]]
    assert Counter(made) == Counter(note=12, check=12)

    # What would be late is made at once, step by step.
    before = len(batches.bills)
    batches.is_held = True
    auto = client.submit(job(lane="auto", deadline_s=20), texts("auto", 4))
    status = auto.wait(120)
    assert status.status is RunStatus.SUCCEEDED
    made = [step_of(bill.body["messages"][-1]["content"]) for bill in batches.bills[before:]]
    assert Counter(made) == expected(4)
    assert status.usage.calls == len(made)

    # A chain in flex is bought there at each step.
    before = len(batches.bills)
    flex = client.submit(job(lane="flex"), texts("flex", 4))
    status = flex.wait(120)
    assert (status.succeeded, status.usage.calls) == (4, 24)
    assert {bill.body["service_tier"] for bill in batches.bills[before:]} == {"flex"}
    bought = {one.lane for branch in flex.result().branches for one in branch.step_records}
    assert bought == {"flex"}
