"""Answers as a user sees them: those that are cut off, and how sure a model is of a label."""

from __future__ import annotations

import csv
import json
import math

from tests.fences import bare
from tests.scripted_provider import openai_reply


def sure(text, probability):
    others = [{"token": "good", "logprob": math.log(0.75)},
              {"token": "bad", "logprob": math.log(0.25)}]  # fmt: skip
    return {"token": text, "logprob": math.log(probability), "top_logprobs": others}


def respond(_headers, body):
    """Answer a document with its text; ``long`` is cut off, ``bad`` is a label."""
    if body is None:
        return 200, {"data": [{"id": "m"}]}
    text = bare(body["messages"][-1]["content"])
    reply = openai_reply(text, "length" if text == "long" else "stop")
    if body.get("logprobs"):
        reply["choices"][0]["logprobs"] = {"content": [sure(text, 0.25 if text == "bad" else 0.75)]}
    return 200, reply


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_cut_answers_and_confidences_stand_in_what_a_user_gets(fanout, here, provider):
    provider.respond = respond
    env = {"OPENAI_BASE_URL": f"{provider.url}/v1", "OPENAI_API_KEY": "k"}
    (here / "in.jsonl").write_text('{"text": "short"}\n{"text": "long"}\n')
    job = ("run", "in.jsonl", "-m", "openai/m", "-p", "{input}", "--max-tokens", "5")
    done = fanout(*job, "--on-truncated", "keep", "--out", "kept", **env)
    assert done.status == 0, done.stderr
    assert "1 answer was cut off and kept" in done.stderr
    assert done.stderr.count("price of openai/m") == 1
    kept = rows(here / "kept" / "outputs.jsonl")
    assert [(row["output"], row["finish_reason"]) for row in kept] == [
        ("short", "stop"), ("long", "length"),
    ]  # fmt: skip
    record = json.loads((here / "kept" / "run.json").read_text())
    assert (record["kept_truncated"], record["notes"]) == (1, ["1 answer was cut off and kept"])
    done = fanout(*job, "--out", "failed", **env)
    [error] = rows(here / "failed" / "errors.jsonl")
    assert (error["kind"], error["finish_reason"], error["attempts"]) == ("truncated", "length", 2)
    assert [body["max_tokens"] for _, _, body in provider.requests if body][-1] in {5, 10}

    (here / "labels.jsonl").write_text('{"text": "good"}\n{"text": "bad"}\n')
    done = fanout("run", "labels.jsonl", "-m", "openai/m", "-p", "{input}", "--choices", "good,bad",
                  "--out", "labels.csv", **env)  # fmt: skip
    assert done.status == 0, done.stderr
    with (here / "labels.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(row["output"], float(row["confidence"])) for row in table] == [
        ("good", 0.75), ("bad", 0.25),
    ]  # fmt: skip
    assert "finish_reason" not in table[0]


def test_the_lane_of_a_run_decides_what_its_answers_cost(fanout, here, provider):
    """Flex that is full is asked again; what it was bought as is said and priced; batch is refused."""
    left = [1]

    def tiered(_headers, body):
        if body is None:
            # Neither a list of models, nor batches.
            return 404, {"error": {"message": "nothing here"}}
        assert body["service_tier"] == "flex"
        if left.pop() if left else 0:
            return 429, {"error": {"message": "full", "code": "resource_unavailable"}}
        text = bare(body["messages"][-1]["content"])
        return 200, {**openai_reply(text), "service_tier": "flex" if text == "b" else "default"}

    provider.respond = tiered
    env = {"OPENAI_BASE_URL": f"{provider.url}/v1", "OPENAI_API_KEY": "k"}
    (here / "in.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    job = ("run", "in.jsonl", "-m", "openai/gpt-5-mini", "-p", "{input}", "--base-wait-s", "0")
    done = fanout(*job, "--lane", "flex", "--out", "flex", **env)
    assert done.status == 0, done.stderr
    dear, cheap = rows(here / "flex" / "outputs.jsonl")
    assert (dear["lane"], cheap["lane"]) == ("realtime", "flex")
    assert sorted([dear["attempts"], cheap["attempts"]]) == [1, 2]
    assert dear["usage"]["cost_usd"] == 2 * cheap["usage"]["cost_usd"] > 0

    asked = len(provider.requests)
    done = fanout(*job, "--lane", "batch", "--out", "batch", **env)
    assert done.status != 0
    assert "has no batch API" in done.stderr
    assert not [body for _, _, body in provider.requests[asked:] if body]
    done = fanout("doctor", "-m", "openai/gpt-5-mini", **env)
    assert "batches of openai/gpt-5-mini" in done.stdout
    assert "cannot be made" in done.stdout
