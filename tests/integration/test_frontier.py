"""The tree of calls follows the answers: it begins while branches go on, and loses nothing with a worker."""

from __future__ import annotations

import re
import threading

import pytest

from fanout import RunStatus
from fanout.core.spec import make_spec
from tests.integration.conftest import QUICK, wait_for
from tests.scripted_provider import ScriptedProvider, openai_reply

COUNT = 2100
IN_FLIGHT = 32


class Summing(ScriptedProvider):
    """Answers a branch with a number, and a node with the sum of the numbers in it."""

    def __init__(self):
        super().__init__()
        self.respond = self._answer
        self.lock = threading.Lock()
        self.calls = []
        # Texts whose calls are held up until `goes_on` is set.
        self.held = ()
        self.fails = ()
        self.is_held = threading.Event()
        self.goes_on = threading.Event()

    def _answer(self, _headers, request):
        if request is None:
            return 200, {"data": []}
        prompt = request["messages"][-1]["content"]
        is_node = prompt.startswith("SUM")
        with self.lock:
            self.calls.append(prompt)
        if not is_node and prompt in self.held:
            self.is_held.set()
            self.goes_on.wait(120)
        if not is_node and prompt in self.fails:
            return 400, {"error": {"message": "no"}}
        if not is_node:
            return 200, openai_reply(f"n=1 answer to {prompt}")
        return 200, openai_reply(f"n={sum(map(int, re.findall('n=([0-9]+)', prompt)))} in sum")

    @property
    def nodes(self):
        return [prompt for prompt in self.calls if prompt.startswith("SUM")]


@pytest.fixture
def provider():
    made = Summing()
    yield made
    made.goes_on.set()
    made.close()


def submit(client, **fields):
    fields = {
        "cache": False,
        "tokenizer": "bytes/4",
        "context_tokens": 560,
        "aggregate_max_tokens": 20,
        **fields,
    }
    spec = make_spec(
        model="openai/m", prompt="{input}", aggregate_prompt="SUM {input}", fence=False, **fields
    )
    return client.submit(spec, [f"text {n}" for n in range(COUNT)])


def test_the_tree_begins_before_the_branches_have_ended(client, start_worker, provider):
    start_worker(**QUICK, OPENAI_BASE_URL=provider.url, OPENAI_API_KEY="none")
    provider.held = (f"text {COUNT - 1}",)
    run = submit(client)
    assert provider.is_held.wait(120)
    wait_for(lambda: len(run.status().stages) > 2, "nodes of the second level are called", 120)
    status = run.status()
    assert status.status is RunStatus.RUNNING
    assert status.stages[0].done < COUNT
    provider.goes_on.set()
    assert run.wait(120).status is RunStatus.SUCCEEDED
    assert run.result().aggregated == f"n={COUNT} in sum"
    first = list(provider.nodes)
    assert len(first) == len({*first}), "each node is called once"
    # Without a straggler, and with a fleet that takes answers in another order, the nodes are the same.
    provider.calls.clear()
    run = submit(client)
    assert run.wait(120).status is RunStatus.SUCCEEDED
    assert sorted(provider.nodes) == sorted(first)


def test_a_killed_worker_loses_nothing_of_a_tree_that_has_begun(client, start_worker, provider):
    environment = {**QUICK, "OPENAI_BASE_URL": provider.url, "OPENAI_API_KEY": "none"}
    worker = start_worker(**environment)
    provider.held = (f"text {COUNT - 1}",)
    run = submit(client)
    wait_for(lambda: len(run.status().stages) > 2, "nodes of the second level are called", 120)
    worker.kill()
    start_worker(**environment)
    provider.goes_on.set()
    assert run.wait(120).status is RunStatus.SUCCEEDED
    assert run.result().aggregated == f"n={COUNT} in sum"
    twice = len(provider.calls) - len({*provider.calls})
    assert twice <= IN_FLIGHT, "only the calls that were in flight are made again"


def test_after_a_retry_only_the_way_to_the_root_is_called_again(client, start_worker, provider):
    start_worker(**QUICK, OPENAI_BASE_URL=provider.url, OPENAI_API_KEY="none")
    provider.fails = ("text 777",)
    run = submit(client, cache=True)
    assert run.wait(120).status is RunStatus.SUCCEEDED
    assert run.result().aggregated == f"n={COUNT - 1} in sum"
    depth = len(run.status().stages) - 1
    provider.fails = ()
    provider.calls.clear()
    assert run.retry_failed() == 1
    assert run.wait(120).status is RunStatus.SUCCEEDED
    assert run.result().aggregated == f"n={COUNT} in sum"
    assert len(provider.calls) <= 1 + 2 * depth
    # A run that never failed has the same tree: all of it is known.
    provider.calls.clear()
    fresh = submit(client, cache=True)
    assert fresh.wait(120).status is RunStatus.SUCCEEDED
    assert fresh.result().aggregated == run.result().aggregated
    assert provider.calls == []
