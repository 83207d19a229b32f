"""Groups are shared among workers: each is called once, as soon as it is complete, and none is lost."""

from __future__ import annotations

import random
import re
import threading
from functools import partial

import pytest

from fanout import RunStatus
from fanout.core.records import Document
from fanout.core.spec import make_spec
from tests.integration.conftest import QUICK, wait_for
from tests.integration.test_deleted_runs import traces
from tests.scripted_provider import ScriptedProvider, openai_reply

COUNT, GROUPS = 2_000, 200
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
        if prompt in self.held:
            self.is_held.set()
            self.goes_on.wait(120)
        if prompt in self.fails:
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


def submit(client, names, **fields):
    fields = {
        "cache": False,
        "tokenizer": "bytes/4",
        "context_tokens": 560,
        "aggregate_max_tokens": 20,
        "group_by": "g",
        **fields,
    }
    spec = make_spec(
        model="openai/m", prompt="{input}", aggregate_prompt="SUM {input}", fence=False, **fields
    )
    documents = [
        Document(name=f"row {at}", index=at, text=f"text {at}", columns={"g": name})
        for at, name in enumerate(names)
    ]
    return client.submit(spec, documents)


def sums(names):
    return {name: f"n={names.count(name)} in sum" for name in dict.fromkeys(names)}


def in_order(count=COUNT, groups=GROUPS):
    return [f"group {at * groups // count:04}" for at in range(count)]


@pytest.fixture
def start(start_worker, provider):
    """Start workers with several partitions, and with large groups that are one by themselves."""
    patches = {"workers.reduce.groups:MOST_BRANCHES": 300}
    environment = {
        **QUICK,
        "OPENAI_BASE_URL": provider.url,
        "OPENAI_API_KEY": "none",
    }
    return partial(start_worker, patches=patches, **environment)


def shuffled(seed=1):
    names = [*in_order(), *["large"] * 700]
    random.Random(seed).shuffle(names)
    return names


def test_small_groups_are_called_while_the_branches_go_on(client, start, provider):
    start()
    provider.held = (f"text {COUNT - 1}",)
    names = in_order()
    run = submit(client, names)
    assert provider.is_held.wait(120)
    # All but those that may be in the shard of the last branch.
    wait_for(lambda: len(provider.nodes) > 100, "nodes are called", 120)
    assert run.status().status is RunStatus.RUNNING
    provider.goes_on.set()
    assert run.wait(120).status is RunStatus.SUCCEEDED
    assert run.result().aggregated == sums(names)
    assert list(run.result().aggregated) == list(dict.fromkeys(names))
    assert len(provider.nodes) == len({*provider.nodes}) == GROUPS
    assert run.status().stages[0].total == COUNT


@pytest.mark.parametrize("workers", [1, 2])
def test_unsorted_groups_of_any_size_are_packed_by_several_workers(
    client, start, provider, workers
):
    for _ in range(workers):
        start()
    names = shuffled()
    run = submit(client, names)
    assert run.wait(120).status is RunStatus.SUCCEEDED
    assert run.result().aggregated == sums(names)
    assert list(run.result().aggregated) == list(dict.fromkeys(names))
    first = sorted(provider.nodes)
    assert len(first) == len({*first}), "each node is called once"
    # Which nodes there are does not depend on partitions, or on who comes first.
    provider.calls.clear()
    run = submit(client, names, cache=True)
    assert run.wait(120).status is RunStatus.SUCCEEDED
    assert sorted(provider.nodes) == first
    provider.calls.clear()
    run = submit(client, names, cache=True)
    assert run.wait(120).status is RunStatus.SUCCEEDED
    assert not provider.nodes


def test_a_killed_worker_loses_no_group(client, start, provider):
    names = shuffled(2)
    worker = start()
    last = max(at for at, name in enumerate(names) if name == "large")
    provider.held = (f"text {last}",)
    run = submit(client, names)
    wait_for(lambda: provider.nodes, "nodes are called", 120)
    worker.kill()
    start()
    provider.goes_on.set()
    assert run.wait(120).status is RunStatus.SUCCEEDED
    assert run.result().aggregated == sums(names)


def test_a_retry_calls_only_the_groups_again_that_have_changed(client, start, provider):
    start()
    names = in_order()
    provider.fails = ("text 777",)
    run = submit(client, names, cache=True)
    assert run.wait(120).status is RunStatus.SUCCEEDED
    changed = names[777]
    assert run.result().aggregated[changed] == f"n={COUNT // GROUPS - 1} in sum"
    provider.fails = ()
    provider.calls.clear()
    assert run.retry_failed() == 1
    assert run.wait(120).status is RunStatus.SUCCEEDED
    assert run.result().aggregated == sums(names)
    assert len(provider.calls) == 2, provider.calls


def test_a_run_that_is_cancelled_while_groups_are_packed_ends(client, start, provider):
    start()
    names = in_order()
    provider.held = (f"text {COUNT - 1}",)
    run = submit(client, names)
    wait_for(lambda: provider.nodes, "nodes are called", 120)
    run.cancel()
    provider.goes_on.set()
    assert run.wait(120).status is RunStatus.CANCELLED


def test_nothing_is_left_of_a_run_that_is_deleted_while_groups_are_packed(
    client, start, provider, broker_url
):
    start()
    provider.held = (f"text {COUNT - 1}",)
    run = submit(client, in_order())
    wait_for(lambda: provider.nodes, "nodes are called", 120)
    run.delete()
    provider.goes_on.set()
    wait_for(lambda: not traces(broker_url, run.run_id), "nothing is left", 120)
