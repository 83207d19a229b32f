"""Answers are kept: what was asked before costs nothing, in this run or another."""

from __future__ import annotations

import json
import threading

import pytest

from tests.fences import bare
from tests.scripted_provider import openai_reply

PRICED = {"input_mtok": 1000, "output_mtok": 1000}


@pytest.fixture
def env(provider, tmp_path):
    """A provider that answers with the question, and says how many calls it has got."""
    lock, prompts = threading.Lock(), []

    def respond(_headers, request):
        if request is None:
            return 200, {"data": []}
        prompt = bare(request["messages"][-1]["content"])
        with lock:
            prompts.append(prompt)
            is_refused = "bad" in prompt and prompts.count(prompt) == 1
        if is_refused:
            return 400, {"error": {"message": "no"}}
        return 200, openai_reply(f"<{prompt}>")

    provider.respond = respond
    return prompts, {
        "OPENAI_BASE_URL": f"{provider.url}/v1",
        "OPENAI_API_KEY": "k",
        "FANOUT_STATE_DIR": str(tmp_path / "state"),
        "FANOUT_BROKER_URL": "",
    }


def test_what_was_asked_before_costs_nothing(fanout, here, env):
    prompts, variables = env

    def run(count, *options, aspects=("a=A {input}", "b=B {input}", "c=C {input}")):
        (here / "in.txt").write_text("".join(f"text {n % 30}\n" for n in range(count)))
        words = [word for aspect in aspects for word in ("--aspect", aspect)]
        prices = [word for name, usd in PRICED.items() for word in ("--price", f"{name}={usd}")]
        prompts.clear()
        done = fanout(
            *("run", "in.txt", "--split", "lines", "--model", "openai/m", "--json"),
            *(*words, *prices, *options),
            **variables,
        )
        assert done.status == 0, done.stderr
        return json.loads(done.stdout), len(prompts)

    # Twice the same text in one run, too.
    first, calls = run(40)
    assert (calls, first["usage"]["calls"], first["cached"]) == (90, 90, 30)
    assert first["saved_usd"] == pytest.approx(30 * 0.007)
    # A second run, and one with the same rows and new ones.
    again, calls = run(40, "--out", "again.jsonl")
    assert (calls, again["usage"]["calls"], again["cached"]) == (0, 0, 120)
    assert (again["usage"]["cost_usd"], again["saved_usd"]) == (0, pytest.approx(0.84))
    rows = [json.loads(line) for line in (here / "again.jsonl").read_text().splitlines()]
    assert {(row["cached"], row["attempts"], row["saved_usd"]) for row in rows} == {
        (True, 0, 0.007)
    }
    assert rows[0]["output"] == "<A text 0>"
    (here / "in.txt").write_text("x")
    more, calls = run(30, aspects=("a=A {input}", "b=B new {input}", "c=C {input}"))
    assert (calls, more["cached"]) == (30, 60), "one prompt of three was changed"
    # Without the cache, neither is taken nor kept.
    assert run(5, "--no-cache")[1] == 15
    job = here / "job.yaml"
    job.write_text(
        "model: openai/m\nprompt: '{input}'\nsplit: lines\ncache: false\ninputs: in.txt\n"
    )
    prompts.clear()
    for _ in range(2):
        assert fanout("run", "job.yaml", **variables).status == 0
    assert len(prompts) == 10

    status = fanout("status", again["run_id"], **variables)
    assert "120 cached" in status.stdout
    assert "$0.84" in status.stdout
    stats = json.loads(fanout("cache", "stats", "--json", **variables).stdout)
    assert (stats["answers"], stats["kept"]) == (120, 120)
    assert stats["saved_usd"] == pytest.approx(0.007 * stats["hits"])
    shown = fanout("cache", **variables).stdout
    assert shown.startswith("120 answers are kept")
    assert fanout("cache", "clear", **variables).stdout == "120 answers deleted\n"
    assert run(10)[1] == 30


def test_a_failed_branch_asks_again_and_the_others_do_not(fanout, here, env):
    prompts, variables = env
    (here / "in.txt").write_text("good\nbad\nbetter\n")
    words = ("run", "in.txt", "--split", "lines", "--model", "openai/m", "--prompt", "{input}")
    first = fanout(*words, "--json", **variables)
    run_id = json.loads(first.stdout)["run_id"]
    assert len(prompts) == 3
    retried = fanout("retry", run_id, "--json", **variables)
    assert retried.status == 0, retried.stderr
    assert prompts[3:] == ["bad"]
    second = json.loads(fanout(*words, "--json", **variables).stdout)
    assert len(prompts) == 4
    assert (second["succeeded"], second["cached"]) == (3, 3)
