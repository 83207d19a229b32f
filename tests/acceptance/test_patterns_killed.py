"""Each pattern in a fleet that dies after each of its steps: the same result, and no call paid twice but
those in flight.

All patterns run at once. The provider holds up each call when it comes for the first time; when each run
waits for its next ones, what makes them is killed, and the next worker goes on.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any

import pytest

from tests.fences import bare
from tests.held_provider import HeldProvider
from tests.integration.conftest import wait_for
from tests.scripted_provider import openai_reply

HANDBOOK = {
    "leave.md": "# Leave\n\nFull-time staff have 28 days of paid leave a year.",
    "flights.md": "# Flights\n\nThe head of department approves each flight.",
}
MINUTES = "1. Budget. The board agreed on it.\n\n2. Hiring. Two people for June.\n"
PLAN = [
    {"title": "Budget", "first_words": "1. Budget. The board", "last_words": "agreed on"},
    {"title": "Hiring", "first_words": "2. Hiring. Two people", "last_words": ""},
]
# Steps and searches that are functions call the provider too, so that they are held up and counted.
FUNCTIONS = """
import json, os, urllib.request

def call(model, prompt):
    asked = {"model": model, "messages": [{"role": "user", "content": prompt}]}
    request = urllib.request.Request(os.environ["OPENAI_BASE_URL"], json.dumps(asked).encode())
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)["choices"][0]["message"]["content"]

def due(branch):
    return {"on": branch["facts"]["days"] + len(call("chain", "DUE " + branch["input"]))}

def find(query, k):
    return [{"id": "wiki 7", "text": call("retrieval", "FIND " + query), "source": "wiki"}]
"""
FACTS = {"type": "object", "properties": {"days": {"type": "integer"}}, "required": ["days"]}
ROWS = ["a bill", "a letter"]
JOBS: dict[str, dict[str, Any]] = {
    "chain": {
        "steps": [
            {"name": "facts", "prompt": "FACTS {input}", "schema": FACTS},
            {"name": "due", "function": "functions_under_test:due"},
            {"name": "note", "prompt": "NOTE {input} {due.on}"},
        ],
        "aggregate_prompt": "SUM {input}",
    },
    "route": {
        "steps": [
            {"name": "kind", "prompt": "KIND {input}", "choices": ["bill", "letter"]},
            {"name": "facts", "prompt": "FACTS {input}", "when": {"kind": "bill"}},
            {"name": "greeting", "prompt": "GREETING {input}", "when": {"kind": "letter"}},
            {"name": "note", "prompt": "NOTE {input} {facts}{greeting}"},
        ],
        "reduce": "concat",
    },
    "judge": {
        "steps": [
            {"name": "note", "prompt": "NOTE {input}"},
            {"name": "check", "judge": "note", "criteria": "It is polite."},
        ],
        "reduce": "concat",
    },
    "retrieval": {
        "retrieve": "handbook",
        "steps": [
            {"name": "topic", "prompt": "TOPIC days of leave: {input}"},
            {
                "name": "reply",
                "prompt": "REPLY {context} Q: {input}",
                "query": "{topic}",
                "top_k": 1,
            },
            {
                "name": "more",
                "prompt": "MORE {context} Q: {input}",
                "retrieve": "functions_under_test:find",
            },
        ],
        "reduce": "concat",
    },
    "orchestrator": {
        "split": "model",
        "prompt": "PART {title}|{before}|{input}|{after}",
        "neighbours": 1,
        # Each of its calls is the only one in flight.
        "max_workers": 1,
        "reduce": "concat",
    },
    "best": {
        "prompt": "DRAFT {input} {sample}",
        "samples": 3,
        "reduce": "best",
        "criteria": "longer",
    },
    "pairwise": {"prompt": "DRAFT {input}", "reduce": "pairwise", "criteria": "longer"},
}
# How many calls of each pattern are in flight when it waits: all of a step, a round or a stage.
WAVES = {
    "chain": [2, 2, 2, 1],
    "route": [2, 2, 2],
    "judge": [2, 2, 2, 2],
    "retrieval": [2, 2, 2, 2],
    "orchestrator": [1, 1, 1, 1],
    "best": [6, 4, 4],
    "pairwise": [3, 4, 2],
}
TEXTS = {"orchestrator": [MINUTES], "pairwise": ["bb", "a", "ccc"]}
ANSWERS = re.compile(r"<answer_A>\n(.*?)\n</answer_A>.*<answer_B>\n(.*?)\n</answer_B>", re.DOTALL)
# What differs between two runs: also how many workers made the calls.
TIMES = re.compile(r".*(_at|_s)|run_id|workers")
PATIENCE_S = 120


def text_of(request):
    """What a call asks, without the ids of fences, which are drawn for each."""
    texts = (one["content"] for one in request["messages"] if one["role"] != "system")
    return re.sub(r" id=\w+", "", "\n".join(texts))


def named(request):
    return request["model"], text_of(request), request.get("seed")


def answered(request):
    asked, word = bare(request["messages"][-1]["content"]), text_of(request).split()[0]
    text = text_of(request)
    if found := ANSWERS.search(text):
        one, other = map(len, found.groups())
        winner = "A" if one > other else "B" if other > one else "tie"
        text = json.dumps({"reasons": "length", "winner": winner})
    elif word == "KIND":
        text = "bill" if "bill" in asked else "letter"
    elif word == "FACTS":
        text = '{"days": 3}'
    elif word == "NOTE":
        text = "A kind note" if len(request["messages"]) > 2 else asked.removeprefix("NOTE ")
    elif word == "DRAFT":
        text = asked.removeprefix("DRAFT ")
    elif request["model"] == "judge":
        verdict = {"reasons": "r", "pass": "kind" in asked, "score": 5, "feedback": "be kind"}
        text = json.dumps(verdict)
    elif request["model"] == "orchestrator" and word != "PART":
        text = json.dumps({"parts": PLAN})
    return 200, openai_reply(text)


@pytest.fixture
def provider():
    made = HeldProvider(named, answered)
    yield made
    made.close()


@pytest.fixture
def jobs(here):
    (here / "handbook").mkdir()
    for name, text in HANDBOOK.items():
        (here / "handbook" / name).write_text(text)
    for name, job in JOBS.items():
        rows = (json.dumps({"text": text}) for text in TEXTS.get(name, ROWS))
        (here / f"{name}.jsonl").write_text("\n".join(rows))
        whole = {"inputs": [f"{name}.jsonl"], "model": f"openai/{name}", "cache": False, **job}
        (here / f"{name}.yaml").write_text(json.dumps(whole))


@pytest.fixture
def machine(here, broker_url, provider, functions, monkeypatch):
    """Return what makes the environment of a worker that is alone on its machine."""
    monkeypatch.setenv("FANOUT_BROKER_URL", broker_url)
    monkeypatch.setenv("FANOUT_VISIBILITY_TIMEOUT_S", "5")
    monkeypatch.setenv("OPENAI_BASE_URL", provider.url)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("PYTHONPATH", functions(FUNCTIONS))
    numbers = count()
    return lambda: {"FANOUT_CACHE_DIR": str(here / f"machine{next(numbers)}")}


@contextmanager
def started(fanout, out):
    """All jobs as commands that wait for their results, and write them below a folder."""
    with ThreadPoolExecutor(len(JOBS)) as pool:
        yield {
            name: pool.submit(
                fanout, "run", f"{name}.yaml", "--json", "--out", str(out / name), timeout_s=250
            )
            for name in JOBS
        }


def results(runs, out):
    """What the commands printed, and the rows that they wrote, without what differs between runs."""
    found = {}
    for name, run in runs.items():
        done = run.result()
        assert done.status == 0, (name, done.stderr)
        rows = (out / name / "outputs.jsonl").read_text().splitlines()
        found[name] = without_times([json.loads(done.stdout), *map(json.loads, rows)])
    return found


def without_times(value):
    if isinstance(value, dict):
        kept = {key: one for key, one in value.items() if not TIMES.fullmatch(key)}
        return {key: without_times(one) for key, one in kept.items()}
    return [*map(without_times, value)] if isinstance(value, list) else value


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("jobs")
def test_a_death_after_each_step_costs_the_calls_in_flight_and_changes_no_result(
    fanout, here, provider, machine, start_worker
):
    worker = start_worker(**machine())
    with started(fanout, here / "alive") as runs:
        expected = results(runs, here / "alive")
    calls = dict(provider.calls)
    assert {*calls.values()} == {1}
    assert Counter(name for name, *_ in calls) == {name: sum(of) for name, of in WAVES.items()}

    provider.hold(lambda name: provider.calls[name] == 1)
    with started(fanout, here / "killed") as runs:
        for wave in waves():
            wait_for(partial(are_held, provider, wave), f"{wave} are held up", PATIENCE_S)
            worker.kill()
            provider.go_on()
            worker = start_worker(**machine())
        found = results(runs, here / "killed")
    # A search belongs to the call that has its passages: it was made again with that.
    deaths = {name: 2 if name[1].startswith("FIND") else 1 for name in calls}
    assert dict(provider.calls) == {name: 1 + deaths[name] for name in calls}
    assert found == expected
    # Each machine that asked with passages has fetched their index.
    fetched = [len([*folder.rglob("*.passages")]) for folder in sorted(here.glob("machine*"))]
    assert fetched == [1] * 3


def waves():
    """How many calls of each pattern are in flight together, one step after another."""
    for number in range(max(map(len, WAVES.values()))):
        yield {name: of[number] for name, of in WAVES.items() if number < len(of)}


def are_held(provider, wave):
    return Counter(name for name, *_ in provider.held) == wave
