"""The fold refine with real workers: calls in turn while branches go on, and nothing is paid for twice."""

from __future__ import annotations

import re

import pytest

from fanout import RunStatus
from fanout.core.spec import make_spec
from tests.integration.conftest import QUICK, wait_for
from tests.integration.test_frontier import COUNT, IN_FLIGHT, Summing, submit
from tests.integration.test_sources import COUNT as CITED
from tests.integration.test_sources import Citing, require_real
from tests.integration.test_sources import submit as submit_cited


@pytest.fixture
def provider():
    made = Summing()
    yield made
    made.goes_on.set()
    made.close()


def refine(client, **fields):
    return submit(client, fold="refine", context_tokens=4_000, **fields)


def test_a_killed_worker_loses_nothing_of_a_chain_that_has_begun(client, start_worker, provider):
    environment = {**QUICK, "OPENAI_BASE_URL": provider.url, "OPENAI_API_KEY": "none"}
    worker = start_worker(**environment)
    provider.held = (f"text {COUNT - 1}",)
    run = refine(client)
    assert provider.is_held.wait(120)
    wait_for(lambda: len(run.status().stages) > 1 and run.status().stages[1].done > 3, "calls", 120)
    assert run.status().status is RunStatus.RUNNING
    worker.kill()
    start_worker(**environment)
    provider.goes_on.set()
    assert run.wait(120).status is RunStatus.SUCCEEDED
    result = run.result()
    assert result.aggregated == f"n={COUNT} in sum"
    twice = len(provider.calls) - len({*provider.calls})
    assert twice <= IN_FLIGHT, "only the calls that were in flight are made again"
    assert len({*provider.nodes}) == run.status().stages[1].total


def test_after_a_retry_calls_before_the_changed_answer_are_known(client, start_worker, provider):
    start_worker(**QUICK, OPENAI_BASE_URL=provider.url, OPENAI_API_KEY="none")
    provider.fails = ("text 1777",)
    run = refine(client, cache=True)
    assert run.wait(120).status is RunStatus.SUCCEEDED
    assert run.result().aggregated == f"n={COUNT - 1} in sum"
    calls = len(provider.nodes)
    provider.fails = ()
    provider.calls.clear()
    assert run.retry_failed() == 1
    assert run.wait(120).status is RunStatus.SUCCEEDED
    assert run.result().aggregated == f"n={COUNT} in sum"
    assert 0 < len(provider.nodes) < calls / 2
    [first, *_] = provider.nodes
    assert "text 1777]" not in first
    found = re.search(r"made from ([\d,]+) answers", first)
    assert found
    assert int(found[1].replace(",", "")) > COUNT / 2


def test_a_chain_ends_with_its_run(client, start_worker, provider):
    start_worker(**QUICK, OPENAI_BASE_URL=provider.url, OPENAI_API_KEY="none")
    answer = provider._answer

    def held(headers, request):
        if request is not None and "made from" in request["messages"][-1]["content"]:
            provider.is_held.set()
            provider.goes_on.wait(120)
        return answer(headers, request)

    provider.respond = held
    run = refine(client)
    assert provider.is_held.wait(120)
    wait_for(lambda: run.status().status is RunStatus.REDUCING, "the branches have ended", 120)
    run.cancel()
    assert run.wait(120).status is RunStatus.CANCELLED


def test_a_killed_worker_loses_nothing_of_a_list_with_a_chain(client, start_worker, provider):
    environment = {**QUICK, "OPENAI_BASE_URL": provider.url, "OPENAI_API_KEY": "none"}
    worker = start_worker(**environment)
    provider.held = (f"text {COUNT - 1}",)
    each = {"aggregate_prompt": "SUM {input}", "aggregate_max_tokens": 20}
    spec = make_spec(
        model="openai/m", prompt="{input}", fence=False, cache=False, tokenizer="bytes/4",
        context_tokens=4_000,
        reduce=[{"name": "tree", "llm": each}, {"name": "chain", "llm": each, "fold": "refine"},
                {"name": "alike", "llm": each, "fold": "cluster"}],
    )  # fmt: skip
    run = client.submit(spec, [f"text {n}" for n in range(COUNT)])
    assert provider.is_held.wait(120)
    wait_for(lambda: len(run.status().stages) > 1 and run.status().stages[1].done > 3, "calls", 120)
    worker.kill()
    worker = start_worker(**environment)
    provider.goes_on.set()
    wait_for(lambda: run.status().stages[0].done == COUNT, "the map has ended", 120)
    worker.kill()
    start_worker(**environment)
    assert run.wait(120).status is RunStatus.SUCCEEDED
    assert run.result().aggregated == dict.fromkeys(("tree", "chain", "alike"), f"n={COUNT} in sum")


@pytest.fixture
def citing():
    made = Citing()
    yield made
    made.goes_on.set()
    made.close()


def test_citations_of_a_chain_outlive_a_killed_worker(client, start_worker, citing):
    # Those of the first call are cited to the end.
    citing.stated = slice(2)
    environment = {**QUICK, "OPENAI_BASE_URL": citing.url, "OPENAI_API_KEY": "none"}
    worker = start_worker(**environment)
    citing.held = (f"text {CITED - 1}",)
    run = submit_cited(client, fold="refine")
    wait_for(lambda: len(citing.nodes) > 3, "calls", 120)
    worker.kill()
    start_worker(**environment)
    citing.goes_on.set()
    assert run.wait(120).status is RunStatus.SUCCEEDED
    result = run.result()
    require_real(result)
    assert {one.index for one in result.sources} == {0, 1}
    assert result.aggregate_coverage.is_whole
    assert result.aggregate_coverage.documents_behind == CITED
    called = {one[0]["content"] for one in citing.nodes}
    assert len(called) == run.status().stages[1].total > 4
