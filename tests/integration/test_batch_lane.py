"""Runs in the batch lane: real workers, and a provider with batch APIs on this machine."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from batch_chaos import run_schedule

from fanout.core.records import ErrorKind, RunStatus
from fanout.core.spec import make_spec
from tests.batch_provider import BatchProvider
from tests.integration.conftest import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration

FAST = {
    "FANOUT_REAPER_INTERVAL_S": "0.25",
    "FANOUT_BATCH_WAIT_S": "0.3",
    "FANOUT_BATCH_POLL_S": "0.2",
    "FANOUT_BATCH_CALLS": "40",
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.fixture
def batches() -> Iterator[BatchProvider]:
    provider = BatchProvider()
    yield provider
    provider.close()


def job(model="openai/gpt-5-mini", **fields):
    return make_spec(model=model, prompt="{input}", lane="batch", **fields)


def texts(count, word="text"):
    return [f"{word} {number};" for number in range(count)]


def test_runs_go_through_batches_with_reasks_failures_expiry_and_duplicates(
    client, batches, start_worker
):
    seen: Counter[str] = Counter()

    def number_of(prompt):
        return int(prompt.split()[1].rstrip(";")) if prompt.startswith(("text", "word")) else -1

    def item(prompt):
        seen[prompt] += 1
        number = number_of(prompt)
        if seen[prompt] == 1 and number in (3, 4):
            return "expired"
        return (500, {"error": {"message": "no"}}) if number == 5 and seen[prompt] == 1 else None

    def reply(prompt):
        return '{"a": "x"}' if number_of(prompt) == 7 and seen[prompt] == 1 else '{"a": 1}'

    batches.item, batches.reply = item, reply
    start_worker("--concurrency", "8", **FAST, **batches.environment)
    # The stages of a reduce use the lane, too.
    reduce = {"reduce": "llm", "aggregate_prompt": "Sum up: {input}"}
    fields = {"schema": SCHEMA, "max_tokens": 100}
    runs = [
        client.submit(job(**fields, **reduce), texts(80) + texts(20)),
        client.submit(job("anthropic/claude-haiku-4-5", **fields), texts(60, "word")),
    ]
    statuses = [run.wait(120) for run in runs]
    assert [(one.succeeded, one.failed, one.error) for one in statuses] == [
        (100, 0, None), (60, 0, None),
    ]  # fmt: skip
    assert len(statuses[0].stages) == 2
    assert batches.doubled == []
    assert not [prompt for prompt in batches.calls if prompt.startswith(("text", "word", "Sum"))]
    # What is there twice is paid for once.
    assert statuses[0].saved.calls == 20
    paid = Counter(prompt for prompt in batches.answered if number_of(prompt) >= 0)
    assert paid == Counter(texts(80) + texts(60, "word"))
    calls = sum(one.usage.calls for one in statuses)
    assert calls == sum(len(batch.ids) for batch in batches.batches)
    # What was kept is not bought again: nothing waits for a batch.
    again = client.submit(job(**fields, **reduce), texts(80) + texts(20)).wait(120)
    assert (again.succeeded, again.saved.calls, again.usage.calls) == (100, 101, 0)
    assert calls == sum(len(batch.ids) for batch in batches.batches)


def test_comparisons_go_through_batches_too(client, batches, start_worker):
    def reply(prompt):
        found = re.findall(r"text (\d+);", prompt)
        if "winner" not in prompt:
            return f"text {found[0]};" if found else "ok"
        one, other = map(int, found)
        return json.dumps({"reasons": "r", "winner": "A" if one > other else "B"})

    batches.reply = reply
    start_worker("--concurrency", "8", **FAST, **batches.environment)
    run = client.submit(job(max_tokens=100, reduce="pairwise", criteria="c", k=1), texts(4))
    status = run.wait(120)
    assert (status.succeeded, status.error) == (4, None)
    assert [row["output"] for row in run.result().aggregated] == ["text 3;"]
    assert len(status.stages) > 1
    assert batches.doubled == []
    assert not [prompt for prompt in batches.calls if "text" in prompt], "no call but in batches"
    assert status.usage.calls == sum(len(batch.ids) for batch in batches.batches)


def test_runs_with_gathered_branches_can_be_steered(client, batches, start_worker):
    """Paused, cancelled, overdue and deleted while their calls are at the provider."""
    batches.is_held = True
    start_worker("--concurrency", "8", **FAST, **batches.environment)

    def submitted(word, count=30, **fields):
        before = len(batches.batches)
        run = client.submit(job(**fields), texts(count, word))
        wait_for(lambda: len(batches.batches) > before, "its batch is at the provider")
        wait_for(lambda: len(run.status().batches) > 0, "it is shown")
        wait_for(lambda: run.status().batches[0].state == "submitted", "its id is known")
        return run, batches.batches[-1]

    paused, batch = submitted("paused")
    status = paused.status()
    assert (status.gathered, status.done) == (30, 0)
    [shown] = status.batches
    assert (shown.batch_id, shown.state, shown.calls) == (batch.id, "submitted", 30)
    # Another run asks the same: it waits for the same calls.
    twin = client.submit(job(), texts(30, "paused"))
    wait_for(lambda: twin.status().gathered == 30, "it waits for the same answers")
    assert not twin.status().batches
    assert paused.pause()

    cancelled, batch = submitted("cancelled")
    cancelled.cancel()
    wait_for(lambda: batch.is_cancelling or batch.state == "cancelled", "it is cancelled")
    batches.is_held = False
    status = cancelled.wait(120)
    assert status.errors == {ErrorKind.CANCELLED: 30}
    # Nothing of it was answered, and the provider has said so.
    assert status.usage.cost_usd == 0
    assert paused.status().done == 0
    batches.is_held = True

    late, _ = submitted("late", deadline_s=10.0)
    gone, batch = submitted("gone", count=20)
    heir = client.submit(job(), texts(20, "gone"))
    wait_for(lambda: heir.status().gathered == 20, "it waits for the answers of the other run")
    # The provider is asked to cancel what nobody waits for any more.
    gone.delete()
    # The other ends when its time is over, also if the provider goes on.
    assert late.wait(120).status is RunStatus.FAILED
    batches.is_held = False
    assert paused.unpause()
    status = paused.wait(120)
    assert (status.succeeded, status.failed, status.gathered) == (30, 0, 0)
    # Those of the twin that lead since the pause, and the deletion, are paid for by their own run.
    assert [run.wait(120).succeeded for run in (twin, heir)] == [30, 20]
    assert heir.status().saved.calls == 0
    assert batches.doubled == []
    server = client._connections.store._redis
    wait_for(lambda: not list(server.keys("fanout:batches:batch:*")), "all batches have ended")
    assert not [key for key in server.keys("*") if gone.run_id.encode() in key]


def test_deaths_of_workers_and_of_the_server_lose_and_double_nothing(tmp_path):
    # The workers die, then the server; then a stream of results is cut off.
    report = run_schedule(4, tmp_path / "fleet", branches=30, faults=3, bound_s=90.0)
    assert report.is_good, report
    assert len(report.faults) == 3
