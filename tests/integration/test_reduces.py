"""Several reduces in one run, with real workers: trees beside each other, a kill, and a retry."""

from __future__ import annotations

import pytest

from fanout import RunStatus
from fanout.core.spec import make_spec
from tests.integration.conftest import QUICK, wait_for
from tests.integration.test_frontier import COUNT, Summing

REDUCES = [
    {"name": "sum", "llm": "SUM {input}", "aggregate_max_tokens": 20},
    {"name": "tens", "llm": "SUM TENS {input}", "group_by": "ten", "aggregate_max_tokens": 20},
    {"name": "counts", "table": {"by": "ten", "measures": ["count"]}},
]
SMALL = {
    "cache": False, "tokenizer": "bytes/4", "context_tokens": 560, "fence": False,
    "model": "openai/m", "prompt": "{input}", "reduce": REDUCES,
}  # fmt: skip


def rows():
    return [{"text": f"text {n}", "ten": str(n // (COUNT // 10))} for n in range(COUNT)]


def require_right(aggregated, missing=0):
    assert aggregated["sum"] == f"n={COUNT - missing} in sum"
    assert sum(row["count"] for row in aggregated["counts"]) == COUNT - missing
    sums = [int(text.split()[0].removeprefix("n=")) for text in aggregated["tens"].values()]
    assert len(sums) == 10
    assert sum(sums) == COUNT - missing


@pytest.fixture
def provider():
    made = Summing()
    yield made
    made.goes_on.set()
    made.close()


def test_a_killed_worker_loses_nothing_of_several_reduces(client, start_worker, provider):
    environment = {**QUICK, "OPENAI_BASE_URL": provider.url, "OPENAI_API_KEY": "none"}
    worker = start_worker(**environment)
    provider.held = (f"text {COUNT - 1}",)
    run = client.submit(make_spec(**SMALL), rows())
    wait_for(lambda: len(run.status().stages) > 2, "nodes of the second level are called", 120)
    worker.kill()
    start_worker(**environment)
    provider.goes_on.set()
    assert run.wait(120).status is RunStatus.SUCCEEDED
    require_right(run.result().aggregated)


def test_a_retry_makes_all_of_several_reduces_again(client, start_worker, provider):
    start_worker(**QUICK, OPENAI_BASE_URL=provider.url, OPENAI_API_KEY="none")
    provider.fails = ("text 777",)
    run = client.submit(make_spec(**{**SMALL, "cache": True}), rows())
    assert run.wait(120).status is RunStatus.SUCCEEDED
    require_right(run.result().aggregated, missing=1)
    provider.fails = ()
    provider.calls.clear()
    assert run.retry_failed() == 1
    assert run.wait(120).status is RunStatus.SUCCEEDED
    require_right(run.result().aggregated)
    depth = len(run.status().stages) - 1
    assert len(provider.calls) <= 1 + 2 * 2 * depth, "the cache has all other calls"
