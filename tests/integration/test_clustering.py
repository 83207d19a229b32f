"""The fold cluster with real workers: one that is killed among its calls loses none of its clusters."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from fanout import RunStatus
from tests.integration.conftest import QUICK
from tests.integration.test_frontier import COUNT, IN_FLIGHT, Summing, submit


class HoldingNodes(Summing):
    """Holds up the calls of nodes once some have been answered, until `goes_on` is set."""

    free = 10

    def _answer(self, headers, request):
        is_node = request is not None and request["messages"][-1]["content"].startswith("SUM")
        if is_node and len(self.nodes) >= self.free:
            self.is_held.set()
            self.goes_on.wait(60)
        return super()._answer(headers, request)


@pytest.fixture
def provider():
    made = HoldingNodes()
    yield made
    made.goes_on.set()
    made.close()


def cluster(client, **fields):
    return submit(client, fold="cluster", context_tokens=2_000, **fields)


def answers(nodes):
    return Counter(re.findall(r"answer to text \d+", "\n".join(nodes)))


def test_a_killed_worker_loses_nothing_of_its_clusters(client, start_worker, provider):
    environment = {**QUICK, "OPENAI_BASE_URL": provider.url, "OPENAI_API_KEY": "none"}
    worker = start_worker(**environment)
    run = cluster(client)
    assert provider.is_held.wait(60)
    assert run.status().status is RunStatus.REDUCING
    worker.kill()
    start_worker(**environment)
    provider.goes_on.set()
    assert run.wait(90).status is RunStatus.SUCCEEDED
    assert run.result().aggregated == f"n={COUNT} in sum"
    twice = len(provider.calls) - len({*provider.calls})
    assert twice <= IN_FLIGHT, "only the calls that were in flight are made again"
    found = answers({*provider.nodes})
    assert len(found) == COUNT
    assert {*found.values()} == {1}


def test_a_run_over_the_same_answers_has_the_same_clusters(client, start_worker, provider):
    provider.goes_on.set()
    start_worker(**QUICK, OPENAI_BASE_URL=provider.url, OPENAI_API_KEY="none")
    for _ in range(2):
        run = cluster(client, cache=True)
        assert run.wait(90).status is RunStatus.SUCCEEDED
        assert run.result().aggregated == f"n={COUNT} in sum"
    assert len(provider.nodes) == len({*provider.nodes})
