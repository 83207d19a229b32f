"""Which client of a runner has the worker for a job."""

from __future__ import annotations

import pytest

from fanout import ParallelCalls


def vectors(texts):
    return [[1.0] for _ in texts]


def client_of(runner, **options):
    # Nothing is started before a job is submitted.
    prompt = None if "steps" in options else "J {input}"
    return runner._client_of(runner._spec(prompt, None, options))


FUNCTIONS = [
    {"aggregate_prompt": "S {input}", "fold": "cluster", "embed": vectors},
    {"models": [lambda prompt: prompt]},
    {"steps": [{"name": "x", "function": lambda branch: branch["input"]}]},
]


@pytest.fixture(autouse=True)
def embedded(monkeypatch):
    monkeypatch.delenv("FANOUT_BROKER_URL", raising=False)


@pytest.mark.parametrize("options", FUNCTIONS)
def test_a_later_run_with_a_function_has_a_worker_that_has_the_function(options):
    with ParallelCalls(llm="fake") as runner:
        plain = client_of(runner)
        own = client_of(runner, **options)
        assert not plain.has_functions(())
        assert own.has_functions(())
        assert client_of(runner, **options) is own, "all runs with functions share it"
        assert client_of(runner) is plain is runner.client


@pytest.mark.parametrize("options", FUNCTIONS)
def test_a_runner_whose_first_run_has_a_function_needs_one_worker(options):
    with ParallelCalls(llm="fake") as runner:
        first = client_of(runner, **options)
        assert first.has_functions(())
        assert client_of(runner) is client_of(runner, **options) is first is runner.client
