"""Runs in the batch lane: real workers, and a provider with batch APIs on this machine."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

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


def texts(count):
    return [f"text {number};" for number in range(count)]


def results_of(run):
    return sorted(run.results(), key=lambda result: result.index)


@pytest.mark.parametrize("model", ["openai/gpt-5-mini", "anthropic/claude-haiku-4-5"])
def test_a_run_goes_through_batches_with_reasks_failures_and_expiry(
    client, batches, start_worker, model
):
    seen: Counter[str] = Counter()

    def item(prompt):
        seen[prompt] += 1
        number = int(prompt.split()[1].rstrip(";")) if prompt.startswith("text ") else -1
        if seen[prompt] == 1 and number in (3, 4):
            return "expired"
        return (500, {"error": {"message": "no"}}) if number == 5 and seen[prompt] == 1 else None

    def reply(prompt):
        return '{"a": "x"}' if prompt == "text 7;" and seen[prompt] == 1 else '{"a": 1}'

    batches.item, batches.reply = item, reply
    start_worker("--concurrency", "8", **FAST, **batches.environment)
    run = client.submit(job(model, schema=SCHEMA, max_tokens=100), texts(100))
    status = run.wait(60)
    assert (status.succeeded, status.failed) == (100, 0), status
    assert batches.doubled == []
    assert not [prompt for prompt in batches.calls if prompt.startswith("text")], "no single call"
    assert status.usage.calls == sum(len(batch.ids) for batch in batches.batches)
