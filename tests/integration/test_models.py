"""Several models in one run, by a real worker and a provider: each asked, or one after the other."""

from __future__ import annotations

import threading
from collections import Counter

import pytest

from fanout import ErrorKind, ModelError, ParallelCalls, RunStatus
from fanout.core.spec import make_spec
from tests.fences import bare
from tests.scripted_provider import openai_reply

FAST = {"max_attempts": 2, "base_wait_s": 0.0}
FILTERED = (400, {"error": {"message": "flagged", "code": "content_filter"}})
DOWN = (500, {"error": {"message": "internal"}})


@pytest.fixture
def ask(client, provider, start_worker):
    """Run a job on a provider that answers each model as it is told."""
    base = {"OPENAI_BASE_URL": f"{provider.url}/v1", "OPENAI_API_KEY": "k"}
    start_worker("--concurrency", "8", **base)
    lock = threading.Lock()

    def run(answers, texts, **fields):
        calls = Counter()

        def respond(_headers, body):
            if body is None:
                return 404, {"detail": "Not Found"}
            name = body["model"]
            with lock:
                calls[name] += 1
            answer = answers[name]
            return answer(body) if callable(answer) else answer

        provider.respond = respond
        spec = make_spec(**{"prompt": "{input}", "retries": FAST, **fields})
        submitted = client.submit(spec, texts)
        submitted.wait(120)
        return submitted, calls

    return run


def models(*names):
    return [f"openai/{name}" for name in names]


def test_each_model_is_asked_and_accounted_for(ask):
    answers = {"one": (200, openai_reply("x")), "two": (200, openai_reply("y"))}
    run, calls = ask(
        answers, ["a", "b"], models=models("one", "two"), samples=2, prompt=None,
        aspects={"p": "{input}", "q": "{input}?"}, reduce="vote", group_by="model",
    )  # fmt: skip
    result = run.result()
    assert calls == {"one": 8, "two": 8}
    assert [branch.model for branch in result.branches[:4]] == models("one", "one", "two", "two")
    assert {name: used.calls for name, used in result.usage_by_model.items()} == {
        "openai/one": 8,
        "openai/two": 8,
    }
    tokens = [used.input_tokens for used in result.usage_by_model.values()]
    assert sum(tokens) == result.usage.input_tokens
    assert run.status().to_dict()["usage_by_model"]["openai/one"]["calls"] == 8
    assert {name: one["winner"] for name, one in result.aggregated.items()} == {
        "openai/one": "x",
        "openai/two": "y",
    }
    assert "Usage by model" in run.report()


def test_fallback_goes_on_where_a_model_refuses_cuts_or_fails(ask):
    def first(body):
        prompt = bare(body["messages"][-1]["content"])
        if "cut" in prompt:
            reply = openai_reply("half")
            reply["choices"][0]["finish_reason"] = "length"
            return 200, reply
        return {"filtered": FILTERED, "down": DOWN}.get(prompt) or (200, openai_reply("maybe"))

    answers = {"first": first, "second": FILTERED, "third": (200, openai_reply("yes"))}
    texts = ["filtered", "down", "cut", "wrong"]
    run, calls = ask(
        answers, texts, model="openai/first", fallback=models("second", "third"),
        choices=["yes", "no"], max_reasks=1,
    )  # fmt: skip
    result = run.result()
    assert result.outputs == ["yes"] * 4
    assert {branch.model for branch in result.branches} == {"openai/third"}
    assert calls == {"first": 6, "second": 4, "third": 4}
    assert [branch.attempts for branch in result.branches] == [3, 4, 3, 4]
    assert {name: used.calls for name, used in result.usage_by_model.items()} == {
        f"openai/{name}": count for name, count in calls.items()
    }
    table = result.to_arrow()
    assert table.column("model").to_pylist() == models("third") * 4


def test_a_model_that_is_down_holds_up_neither_the_others_nor_those_with_a_fallback(ask):
    answers = {"down": DOWN, "well": (200, openai_reply("yes"))}
    texts = [f"text {number}" for number in range(60)]
    run, calls = ask(answers, texts, model="openai/down", fallback=models("well"))
    assert run.result().outputs == ["yes"] * 60
    assert calls["well"] == 60
    # Not each branch tries it: it is known to fail.
    assert calls["down"] < 120


def test_a_model_that_refuses_its_key_costs_its_own_branches_only(ask):
    refusal = (401, {"error": {"message": "bad key", "code": "invalid_api_key"}})
    answers = {"locked": refusal, "well": (200, openai_reply("yes"))}
    texts = [f"text {number}" for number in range(40)]
    run, calls = ask(answers, texts, models=models("locked", "well"))
    result = run.result()
    assert result.status is RunStatus.SUCCEEDED
    assert {(one.kind, one.model) for one in result.errors} == {(ErrorKind.AUTH, "openai/locked")}
    assert calls["well"] == 40
    assert calls["locked"] <= 8
    answers["locked"] = (200, openai_reply("now"))
    assert run.retry_failed() == 40
    run.wait(120)
    again = run.result()
    assert Counter(again.outputs) == {"yes": 40, "now": 40}
    assert again.usage_by_model["openai/well"].calls == 40


@pytest.mark.parametrize("fields", [{"models": ["fake", "no/such"]}, {"fallback": ["no/such"]}])
def test_every_model_is_checked_before_anything_is_sent(client, start_worker, fields):
    start_worker("--concurrency", "1")
    spec = {"prompt": "{input}", **({"model": "fake"} if "fallback" in fields else {}), **fields}
    with pytest.raises(ModelError, match="no/such"):
        client.submit(spec, ["a"])
    assert list(client.runs()) == []


def test_functions_and_model_strings_may_be_mixed(monkeypatch, tmp_path):
    monkeypatch.setenv("FANOUT_STATE_DIR", str(tmp_path))
    monkeypatch.delenv("FANOUT_BROKER_URL", raising=False)
    with ParallelCalls(llm=[str.upper, "fake?answer=no"]) as runner:
        result = runner.run(["a", "b"], "{input}")
        assert result.outputs == ["A", "no", "B", "no"]
        second = runner.run(["c"], "{input}", model="fake?fail_rate=1&fail_kind=truncated",
                            fallback=[str.title])  # fmt: skip
        assert second.outputs == ["C"]
        assert second.branches[0].model.startswith("callable:str.title-")
