"""Cited aggregates with real workers: they outlive a killed one, and are the same after a retry."""

from __future__ import annotations

import re
import threading

import pytest

from fanout import RunStatus
from fanout.core.citations import UNKNOWN
from fanout.core.spec import make_spec
from tests.integration.conftest import QUICK, wait_for
from tests.scripted_provider import ScriptedProvider, openai_reply

COUNT = 600
FACT = re.compile(r"fact (\d+)[^\[\n]*(\[s-\w+\])")


class Citing(ScriptedProvider):
    """States two facts of a node, the last by default, and cites them; invents where it is told to."""

    stated = slice(-2, None)

    def __init__(self):
        super().__init__()
        self.respond = self._answer
        self.lock = threading.Lock()
        self.calls = []
        self.held = ()
        self.fails = ()
        self.invents = 0
        self.is_held = threading.Event()
        self.goes_on = threading.Event()

    def _answer(self, _headers, request):
        if request is None:
            return 200, {"data": []}
        first = request["messages"][-1 if len(request["messages"]) < 3 else -3]["content"]
        with self.lock:
            self.calls.append(request["messages"])
        if not first.startswith("SUM"):
            if first in self.held:
                self.is_held.set()
                self.goes_on.wait(120)
            if first in self.fails:
                return 400, {"error": {"message": "no"}}
            return 200, openai_reply(f"the fact {first.split()[1]}")
        if self.invents:
            self.invents -= 1
            return 200, openai_reply("the fact 0 [s-invented]")
        fences = re.findall(r"^=== \w{12}", first, re.MULTILINE)
        found = []
        for block in first.split(f"\n{fences[-1]}")[1:-1]:
            line, _, content = block.partition("\n")
            found += (
                [(fact, line.strip()) for fact in re.findall(r"fact (\d+)", content)]
                if line.strip()
                else FACT.findall(content)
            )
        return 200, openai_reply(
            " ".join(f"the fact {fact} {one}." for fact, one in found[self.stated])
        )

    @property
    def nodes(self):
        return [one for one in self.calls if one[0]["content"].startswith("SUM")]


@pytest.fixture
def provider():
    made = Citing()
    yield made
    made.goes_on.set()
    made.close()


def submit(client, **fields):
    spec = make_spec(
        model="openai/m",
        prompt="{input}",
        aggregate_prompt="SUM {input}",
        sources=True,
        fence=False,
        tokenizer="bytes/4",
        context_tokens=900,
        aggregate_max_tokens=40,
        **{"cache": False, **fields},
    )
    return client.submit(spec, [f"text {n}" for n in range(COUNT)])


def require_real(result):
    """Check that each citation leads to the branch that states the fact."""
    by_id = {one.id: one for one in result.sources}
    cited = FACT.findall(result.aggregated)
    assert len(cited) == 2
    for fact, one in cited:
        assert result.branches[by_id[one[1:-1]].index].output == f"the fact {fact}"


def test_citations_outlive_a_killed_worker(client, start_worker, provider):
    environment = {**QUICK, "OPENAI_BASE_URL": provider.url, "OPENAI_API_KEY": "none"}
    worker = start_worker(**environment)
    provider.held = (f"text {COUNT - 1}",)
    run = submit(client)
    wait_for(lambda: len(provider.nodes) > 2, "nodes are called", 120)
    worker.kill()
    start_worker(**environment)
    provider.goes_on.set()
    assert run.wait(120).status is RunStatus.SUCCEEDED
    result = run.result()
    require_real(result)
    assert result.aggregate_coverage.is_whole
    assert result.aggregate_coverage.documents_behind == COUNT


def test_a_retry_calls_the_way_to_the_root_and_cites_as_a_run_that_never_failed(
    client, start_worker, provider
):
    start_worker(**QUICK, OPENAI_BASE_URL=provider.url, OPENAI_API_KEY="none")
    provider.fails = ("text 77",)
    run = submit(client, cache=True)
    assert run.wait(120).status is RunStatus.SUCCEEDED
    result = run.result()
    require_real(result)
    assert result.aggregate_coverage.missing == {"bad_request": 1}
    assert any(
        "1 of" in one[0]["content"] and "missing" in one[0]["content"] for one in provider.nodes
    )
    provider.fails = ()
    provider.calls.clear()
    assert run.retry_failed() == 1
    assert run.wait(120).status is RunStatus.SUCCEEDED
    depth = len(run.status().stages) - 1
    assert len(provider.calls) <= 1 + 2 * depth
    require_real(run.result())
    provider.calls.clear()
    fresh = submit(client, cache=True)
    assert fresh.wait(120).status is RunStatus.SUCCEEDED
    assert provider.calls == []
    assert fresh.result().aggregated == run.result().aggregated
    assert fresh.result().sources == run.result().sources


def test_an_invention_is_sent_back_once_and_then_marked(client, start_worker, provider):
    start_worker(**QUICK, OPENAI_BASE_URL=provider.url, OPENAI_API_KEY="none")
    provider.invents = 2
    spec = make_spec(
        model="openai/m",
        prompt="{input}",
        aggregate_prompt="SUM {input}",
        sources=True,
        fence=False,
        cache=False,
    )
    run = client.submit(spec, ["text 0", "text 1"])
    assert run.wait(120).status is RunStatus.SUCCEEDED
    result = run.result()
    assert result.aggregated == f"the fact 0 {UNKNOWN}"
    assert result.sources == []
    _, told = provider.nodes
    assert [one["role"] for one in told] == ["user", "assistant", "user"]
    assert told[-1]["content"].startswith("That cannot stay: no source has these ids: s-invented")
