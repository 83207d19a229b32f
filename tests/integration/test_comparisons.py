"""The reduces best and pairwise on real workers: exact counts of calls, also with kills in each round."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter

import pytest

from fanout import RunStatus
from fanout.core.spec import make_spec
from tests.scripted_provider import ScriptedProvider, openai_reply

QUICK = {"FANOUT_VISIBILITY_TIMEOUT_S": "5", "FANOUT_REAPER_INTERVAL_S": "0"}
ANSWERS = re.compile(
    r"<answer_A id=\w+>\n(.*?)\n</answer_A.*<answer_B id=\w+>\n(.*?)\n</answer_B", re.DOTALL
)


class Judged(ScriptedProvider):
    """Answers a branch with its number, and prefers the higher number; a call may be held up."""

    def __init__(self):
        super().__init__()
        self.respond = self._answer
        self.lock = threading.Lock()
        self.calls = Counter()
        self.judged = []
        self.held = None
        self.is_held = threading.Event()
        self.goes_on = threading.Event()
        self.fails = set()
        self.prefers_first = False

    def hold(self, number):
        self.held, self.judged = number, []
        self.is_held.clear()
        self.goes_on.clear()

    def _answer(self, _headers, request):
        if request is None:
            # The check of the model.
            return 200, {"data": []}
        prompt = request["messages"][-1]["content"]
        found = ANSWERS.search(prompt)
        with self.lock:
            self.calls[request["model"]] += 1
            if found:
                self.judged.append(found.groups())
            is_held = bool(found) and len(self.judged) == self.held
        if found is None:
            return 200, openai_reply(self._branch(prompt, request))
        if is_held:
            self.is_held.set()
            self.goes_on.wait(30)
        one, other = found.groups()
        if {one, other} & self.fails:
            return 400, {"error": {"message": "no"}}
        verdict = {"reasons": "r", "winner": self._winner(_number(one), _number(other))}
        return 200, openai_reply(json.dumps(verdict))

    def _branch(self, prompt, request):
        seed = request.get("seed")
        return f"{prompt} v{seed}" if seed is not None else prompt

    def _winner(self, one, other):
        if self.prefers_first:
            return "A"
        return "A" if one > other else "B" if other > one else "tie"


def _number(text):
    """The quality of an answer: its number, or that of its sample."""
    sample = re.search(r"v(\d+)$", text)
    return {1: 5, 2: 9, 3: 7}[int(sample[1])] if sample else int(text.split()[-1])


@pytest.fixture
def provider():
    made = Judged()
    yield made
    made.goes_on.set()
    made.close()


@pytest.fixture
def environment(provider):
    return {**QUICK, "OPENAI_BASE_URL": provider.url, "OPENAI_API_KEY": "none"}


def submit(client, texts, **fields):
    fields = {"prompt": "{input}", "criteria": "the higher", "cache": False, "seed": 1, **fields}
    return client.submit(make_spec(model="openai/m", **fields), texts)


def test_best_and_pairwise_with_exact_counts(client, start_worker, provider, environment):
    start_worker(**environment)
    run = submit(client, ["x", "y"], reduce="best", samples=3, judge_model="openai/judge")
    assert run.wait(40).status is RunStatus.SUCCEEDED
    result = run.result()
    assert provider.calls == {"m": 6, "judge": 2 * 2 * 2}, (
        "two comparisons of each three, in both orders"
    )
    assert result.usage.calls == 14
    assert result.usage_by_model["openai/judge"].calls == 8
    rows = result.aggregated
    assert {name: (row["output"], row["wins"]) for name, row in rows.items()} == {
        "item 1": ("x v2", 2), "item 2": ("y v2", 2),
    }  # fmt: skip
    assert [one.output for one in result.branches if one.is_best] == ["x v2", "y v2"]
    assert result.to_dict()["branches"][0]["is_best"] is False
    assert result.notes == []
    assert {*map(frozenset, provider.judged)} >= {frozenset(("x v1", "x v2"))}
