"""The reduces best and pairwise on real workers: exact counts of calls."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter

import pytest

from fanout import RunStatus
from fanout.core.spec import make_spec
from tests.scripted_provider import ScriptedProvider, openai_reply

ANSWERS = re.compile(
    r"<answer_A[^>]*>\n(.*?)\n</answer_A.*<answer_B[^>]*>\n(.*?)\n</answer_B", re.DOTALL
)


class Judged(ScriptedProvider):
    """Answers a branch with its number, and prefers the higher number."""

    def __init__(self):
        super().__init__()
        self.respond = self._answer
        self.lock = threading.Lock()
        self.calls = Counter()
        self.judged = []
        self.fails = set()
        self.prefers_first = False
        self.is_away = None

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
        if found is None:
            return 200, openai_reply(self._branch(prompt, request))
        one, other = found.groups()
        if request["model"] == self.is_away:
            return 503, {"error": {"message": "away"}}
        if {one, other} & self.fails:
            return 400, {"error": {"message": "no"}}
        verdict = {"reasons": "r", "winner": self._winner(_number(one), _number(other))}
        return 200, openai_reply(json.dumps(verdict))

    def _branch(self, prompt, request):
        text = prompt.splitlines()[1]  # between fences
        return text if text.startswith("text") else f"{text} v{request['seed']}"

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
    made.close()


@pytest.fixture
def environment(provider):
    return {"OPENAI_BASE_URL": provider.url, "OPENAI_API_KEY": "none"}


def submit(client, texts, **fields):
    fields = {"prompt": "{input}", "criteria": "the higher", "cache": False, "seed": 1, **fields}
    return client.submit(make_spec(model="openai/m", **fields), texts)


def test_best_and_pairwise_with_exact_counts(client, start_worker, provider, environment):
    start_worker(**environment)
    run = submit(client, ["x", "y"], reduce="best", samples=3, judge_model="openai/judge")
    assert run.wait(120).status is RunStatus.SUCCEEDED
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

    provider.judged = []
    texts = [f"text {number}" for number in (3, 1, 4, 1, 9)]
    run = submit(client, texts, reduce="pairwise")
    assert run.wait(120).status is RunStatus.SUCCEEDED
    result = run.result()
    assert [(row["rank"], row["output"]) for row in result.aggregated] == [
        (1, "text 9"), (2, "text 4"), (3, "text 3"), (4, "text 1"), (4, "text 1"),
    ]  # fmt: skip
    comparisons = provider.judged
    assert len({*map(frozenset, comparisons)}) * 2 == len(comparisons), "each in both orders, once"
    assert result.usage.calls == len(texts) + len(comparisons)
    assert sum(stage.total for stage in run.status().stages[1:]) == len(comparisons)


def test_groups_the_first_k_ties_failures_and_a_retry(client, start_worker, provider, environment):
    start_worker(**environment)
    rows = [
        {"text": f"text {number}", "kind": "odd" if number % 2 else "even"} for number in range(6)
    ]
    run = submit(client, rows, reduce="pairwise", group_by="kind", k=1)
    assert run.wait(120).status is RunStatus.SUCCEEDED
    best = run.result().aggregated
    assert {kind: [row["output"] for row in some] for kind, some in best.items()} == {
        "even": ["text 4"], "odd": ["text 5"],
    }  # fmt: skip
    # A judge that goes by the place of answers knows no order, and it is told.
    provider.prefers_first, provider.judged = True, []
    result = submit(client, ["text 1", "text 2", "text 3"], reduce="pairwise")
    result.wait(120)
    assert {row["rank"] for row in result.result().aggregated} == {1}
    assert len(provider.judged) == 4
    assert result.result().notes == [
        "2 of 2 comparisons count as ties, as the judge's choice changed with the order of the two answers"
    ]
    provider.prefers_first = False
    # A comparison that fails is a tie; the others go on.
    provider.fails = {"x v3"}
    run = submit(client, ["x"], reduce="best", samples=3, max_attempts=1)
    assert run.wait(120).status is RunStatus.SUCCEEDED
    result = run.result()
    assert result.aggregated["item 1"]["output"] == "x v2"
    assert result.notes == ["1 of 2 comparisons failed, and counts as a tie"]
    assert [error.kind.value for error in result.reduce_errors] == ["bad_request"] * 2
    # Without any comparison the run has failed, and a retry compares again.
    provider.fails, provider.calls = {"x v1", "x v2", "x v3"}, Counter()
    run = submit(client, ["x"], reduce="best", samples=3, max_attempts=1)
    assert run.wait(120).status is RunStatus.FAILED
    assert "no comparison could be made: bad_request" in run.status().error
    provider.fails = set()
    assert run.retry_failed() == 0
    assert run.wait(120).status is RunStatus.SUCCEEDED
    assert run.result().aggregated["item 1"]["output"] == "x v2"
    assert provider.calls["m"] == 3 + 2 + 4, "no branch again"
    # Where the judge cannot be asked, another model compares.
    provider.calls, provider.is_away = Counter(), "gone"
    run = submit(client, ["x"], reduce="best", samples=2, judge_model="openai/gone",
                 fallback=["openai/other"], max_attempts=1)  # fmt: skip
    assert run.wait(120).status is RunStatus.SUCCEEDED
    assert run.result().aggregated["item 1"]["output"] == "x v2"
    assert provider.calls == {"m": 2, "gone": 2, "other": 2}
    # A budget that the comparisons do not fit: a larger one makes them, and no branch again.
    run = submit(client, ["x"], reduce="best", samples=3, budget={"calls": 6})
    assert run.wait(120).status is RunStatus.FAILED
    result = run.result()
    assert (len(result.errors), result.usage.calls) == (0, 6)
    assert [error.kind.value for error in result.reduce_errors] == ["budget"]
    assert "1 call that compares answers did not fit: budget" in run.status().error
    assert run.retry_failed(budget={"calls": 20}) == 0
    assert run.wait(120).status is RunStatus.SUCCEEDED
    assert run.result().aggregated["item 1"]["output"] == "x v2"
    assert run.result().usage.calls == 6 + 4
