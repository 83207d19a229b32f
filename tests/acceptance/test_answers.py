"""Answers as a user sees them: those that are cut off, and how sure a model is of a label."""

from __future__ import annotations

import csv
import json
import math

from tests.scripted_provider import openai_reply


def sure(text, probability):
    others = [{"token": "good", "logprob": math.log(0.75)},
              {"token": "bad", "logprob": math.log(0.25)}]  # fmt: skip
    return {"token": text, "logprob": math.log(probability), "top_logprobs": others}


def respond(_headers, body):
    """Answer a document with its text; ``long`` is cut off, ``bad`` is a label."""
    if body is None:
        return 200, {"data": [{"id": "m"}]}
    text = body["messages"][-1]["content"]
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
