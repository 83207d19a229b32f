"""Which client of a runner has the worker for a job."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fanout import ParallelCalls
from fanout.client.embedded_runs import _require_function
from fanout.core.errors import RunError
from fanout.core.spec import make_spec
from fanout.llm.callables import (
    is_registered,
    register_callable,
    resolve_callable,
    unregister_callable,
)


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


def found(query, *, top_k):
    return [query][:top_k]


@pytest.fixture
def lost():
    """A run whose process has died, and with it the functions that it calls."""
    names = {field: register_callable(lambda _: None) for field in ("embed", "retrieve")}
    fields = {"prompt": "J {input} {context}", "aggregate_prompt": "S {input}", "fold": "cluster"}
    spec = make_spec(model="fake", **fields, **names)
    for name in names.values():
        unregister_callable(name)
    return SimpleNamespace(run_id="r1", spec=spec)


def test_functions_of_a_resumed_run_take_the_place_of_those_that_have_died(lost):
    with ParallelCalls(llm="fake") as runner:
        runner._replace_others(lost, "embed", lost.spec.embed_functions, vectors)
        runner._replace_others(lost, "retrieve", lost.spec.retrieval_functions, [found])
        assert resolve_callable(lost.spec.embed) is vectors
        assert [resolve_callable(one) for one in lost.spec.retrieval_functions] == [found]
    del runner
    assert not is_registered(lost.spec.embed), "the runner has them, and nothing else"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([vectors, vectors], "embed: run r1 has 1 function of a Python process there (got 2)"),
        ("emb:vectors", "embed: must be a function (got str)"),
    ],
)
def test_other_functions_than_a_run_calls_are_refused(lost, given, message):
    with ParallelCalls(llm="fake") as runner, pytest.raises(RunError) as refused:
        runner._replace_others(lost, "embed", lost.spec.embed_functions, given)
    assert str(refused.value) == message


def test_a_function_that_has_died_has_the_argument_that_gives_it_anew(lost):
    with pytest.raises(
        RunError, match=r"ParallelCalls\(\)\.resume\('r1', embed=FUNCTION\) in a program"
    ):
        _require_function("r1", lost.spec.embed, given="embed=FUNCTION")
    with pytest.raises(
        RunError, match=r"ParallelCalls\(llm=FUNCTION\)\.resume\('r1'\) in a program"
    ):
        _require_function("r1", lost.spec.embed)
