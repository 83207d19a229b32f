"""The fold cluster with real workers: one that is killed among its calls loses none of its clusters."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from fanout import RunStatus
from tests.integration.conftest import QUICK, wait_for
from tests.integration.test_frontier import COUNT, IN_FLIGHT, Summing, submit
from tests.integration.test_groups import submit as submit_groups
from tests.integration.test_groups import sums

VECTORS = """
import pathlib
import time
folder = pathlib.Path(__file__).parent

def vectors(texts):
    with (folder / "asked").open("a") as file:
        file.write(f"{len(texts)}\\n")
    until = time.monotonic() + 60
    while not (folder / "goes_on").exists() and time.monotonic() < until:
        time.sleep(0.02)
    # By the last digit of the text's number.
    return [[1.0 if text.endswith(str(digit)) else 0.0 for digit in range(10)] for text in texts]
"""


class HoldingNodes(Summing):
    """Holds up the calls of nodes once some have been answered, until `goes_on` is set."""

    free = 10

    def _answer(self, headers, request):
        is_node = request is not None and request["messages"][-1]["content"].startswith("SUM")
        if is_node and len(self.nodes) >= self.free:
            self.is_held.set()
            self.goes_on.wait(120)
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
    assert provider.is_held.wait(120)
    assert run.status().status is RunStatus.REDUCING
    worker.kill()
    start_worker(**environment)
    provider.goes_on.set()
    assert run.wait(120).status is RunStatus.SUCCEEDED
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
        assert run.wait(120).status is RunStatus.SUCCEEDED
        assert run.result().aggregated == f"n={COUNT} in sum"
    assert len(provider.nodes) == len({*provider.nodes})


def test_workers_that_are_killed_as_vectors_are_made_and_after_it_lose_nothing(
    client, start_worker, provider, functions
):
    folder = Path(functions(VECTORS))
    environment = {**QUICK, "OPENAI_BASE_URL": provider.url, "OPENAI_API_KEY": "none"}
    environment["PYTHONPATH"] = str(folder)
    worker = start_worker(**environment)
    run = cluster(client, embed="functions_under_test:vectors")
    asked = folder / "asked"
    wait_for(asked.exists, "vectors are made", 120)
    worker.kill()
    assert provider.nodes == []
    (folder / "goes_on").touch()
    worker = start_worker(**environment)
    assert provider.is_held.wait(120)
    assert sum(map(int, asked.read_text().split())) >= COUNT
    asked.unlink()
    worker.kill()
    start_worker(**environment)
    provider.goes_on.set()
    assert run.wait(120).status is RunStatus.SUCCEEDED
    assert run.result().aggregated == f"n={COUNT} in sum"
    assert not asked.exists(), "the nodes are written"
    firsts = [one for one in {*provider.nodes} if "answer to text" in one]
    found = answers(firsts)
    assert len(found) == COUNT
    assert {*found.values()} == {1}
    digits = [{one[-1] for one in re.findall(r"answer to text \d+", node)} for node in firsts]
    assert sum(len(one) == 1 for one in digits) > len(digits) / 2


def test_a_killed_worker_loses_nothing_of_the_clusters_of_groups(client, start_worker, provider):
    environment = {**QUICK, "OPENAI_BASE_URL": provider.url, "OPENAI_API_KEY": "none"}
    worker = start_worker(**environment)
    names = [f"group {number % 3}" for number in range(900)]
    run = submit_groups(client, names, fold="cluster", context_tokens=1_000)
    assert provider.is_held.wait(120)
    worker.kill()
    start_worker(**environment)
    provider.goes_on.set()
    assert run.wait(120).status is RunStatus.SUCCEEDED
    assert run.result().aggregated == sums(names)
    twice = len(provider.calls) - len({*provider.calls})
    assert twice <= IN_FLIGHT, "only the calls that were in flight are made again"
    found = answers({*provider.nodes})
    assert len(found) == len(names)
    assert {*found.values()} == {1}
