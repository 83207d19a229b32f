"""Branches with steps on real workers: routes, judges, functions and retries, with exact calls."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from fanout import RunStatus
from fanout.core.errors import ModelError
from fanout.core.records import ErrorKind
from fanout.core.spec import make_spec
from fanout.inputs.fences import RULE
from fanout.report.page import render
from tests.fences import bare
from tests.scripted_provider import ScriptedProvider, openai_reply

FACTS = {"type": "object", "properties": {"days": {"type": "integer"}}, "required": ["days"]}
STEPS = (
    {"name": "kind", "prompt": "KIND {input}", "choices": ["bill", "letter"]},
    {"name": "facts", "prompt": "FACTS {input}", "schema": FACTS, "when": {"kind": "bill"}},
    {"name": "greeting", "prompt": "GREETING {input}", "when": {"kind": "letter"}},
    {"name": "due", "function": "functions_under_test:due", "when": {"kind": "bill"}},
    {"name": "note", "prompt": "NOTE {document} {due.on}{greeting}"},
    {"name": "check", "judge": "note", "criteria": "It is polite."},
)
DUE = """
def due(branch):
    return {"on": branch["facts"]["days"] + 1, "kind": branch["kind"]}
"""


class Steps(ScriptedProvider):
    """Answers each step; a judge passes the second answer."""

    def __init__(self):
        super().__init__()
        self.respond = self._answer
        self.calls = Counter()
        self.order = []
        self.fails = None

    def _answer(self, _headers, request):
        if request is None:
            # The check of the model.
            return 200, {"data": []}
        messages = [bare(one["content"]) for one in request["messages"] if one["role"] != "system"]
        step, text = self._step(messages)
        self.order.append(step)
        self.calls[step] += 1
        if step == self.fails:
            return 400, {"error": {"message": "no"}}
        return 200, openai_reply(text)

    @staticmethod
    def _step(messages):
        head, said = messages[0].partition(" ")[0], messages[0]
        if head == "KIND":
            return "kind", "bill" if "bill" in said else "letter"
        if head == "FACTS":
            return "facts", '{"days": 3}'
        if head == "GREETING":
            return "greeting", "Hello"
        if head == "NOTE":
            return "note", f"{said} {'kindly' if len(messages) > 1 else ''}".strip()
        if "MIXED" in said:
            # It contradicts itself.
            return "mixed", json.dumps({"reasons": "r", "pass": True, "score": 0, "feedback": ""})
        passes = "kindly" in said
        verdict = {"reasons": "r", "pass": passes, "score": 5, "feedback": "be kind"}
        return "check", json.dumps(verdict)


@pytest.fixture
def provider():
    made = Steps()
    yield made
    made.close()


@pytest.fixture
def environment(provider, functions):
    return {
        "OPENAI_BASE_URL": provider.url,
        "OPENAI_API_KEY": "none",
        "PYTHONPATH": functions(DUE),
    }


def submit(client, texts, **fields):
    fields = {"steps": list(STEPS), "cache": False, **fields}
    return client.submit(make_spec(model="openai/m", **fields), texts)


def test_functions_of_steps_are_checked_before_the_run(client, start_worker, environment):
    start_worker(**environment, FANOUT_ALLOWED_CALLABLES="functions_under_test:other")
    with pytest.raises(ModelError) as raised:
        submit(client, ["a bill"])
    assert str(raised.value).startswith(
        "steps.due.function: the function functions_under_test:due may not be used on the workers"
    )
    assert not list(client.runs())


def test_a_route_a_retry_and_what_a_judge_refuses(client, start_worker, provider, environment):
    start_worker(**environment)
    run = submit(client, ["a bill", "a letter"])
    assert run.wait(120).status is RunStatus.SUCCEEDED
    assert provider.calls == {"kind": 2, "facts": 1, "greeting": 1, "note": 4, "check": 4}
    bill, letter = run.result().branches
    assert "greeting" not in bill.steps
    assert "facts" not in letter.steps
    assert letter.output == 'NOTE "item 2" "Hello" kindly'

    provider.calls.clear()
    provider.fails = "note"
    run = submit(client, ["a bill", "a letter"])
    assert run.wait(120).status is RunStatus.FAILED
    [first, second] = run.result().branches
    assert first.kind is second.kind is ErrorKind.BAD_REQUEST
    assert first.message.startswith("step note: ")
    assert first.steps == {"kind": "bill", "facts": {"days": 3}, "due": {"on": 4, "kind": "bill"}}
    provider.fails = None
    assert run.retry_failed() == 2
    assert run.wait(120).status is RunStatus.SUCCEEDED
    # The retry begins at the step that failed.
    assert provider.calls == {"kind": 2, "facts": 1, "greeting": 1, "note": 6, "check": 4}
    assert [one.output for one in run.result().branches] == [bill.output, letter.output]

    refused = [*STEPS[:-1], {**STEPS[-1], "max_rounds": 1}]
    for on_rejected, kind in (("keep", None), ("fail", ErrorKind.INVALID_OUTPUT)):
        run = submit(client, ["a letter"], steps=refused, on_rejected=on_rejected)
        status = run.wait(120)
        result = run.result()
        [branch] = result.branches
        assert branch.is_rejected is True
        assert status.kept_rejected == (kind is None)
        assert ("1 answer was rejected by a judge and kept" in result.notes) == (kind is None)
        assert not status.asks_once
        page = render(run)
        # The steps of the branch, also of one that failed.
        assert "What judges rejected" in page
        assert "Hello" in page
        [row] = result.to_pandas().to_dict("records")
        assert (row["kind"], row["check.pass"], row["rejected"]) == ("letter", False, True)
        assert branch.kind is kind
        assert branch.output == ('NOTE "item 1" "Hello"' if kind is None else None)
        assert kind is None or "step check did not pass the answer: be kind" in branch.message


def test_two_judges_with_a_model_of_their_own_and_one_that_contradicts_itself(
    client, start_worker, provider, environment
):
    start_worker(**environment)
    steps = [
        {"name": "note", "prompt": "NOTE {input}"},
        {"name": "check", "judge": "note", "criteria": ["polite", "short"], "model": "openai/judge"},
        {"name": "mixed", "judge": "note", "criteria": "MIXED", "model": "openai/judge",
         "max_rounds": 2},
    ]  # fmt: skip
    run = submit(client, ["x"], steps=steps)
    status = run.wait(120)
    assert provider.order == [
        "note", "check", "note", "check", "mixed", "note", "check", "mixed",
    ]  # fmt: skip
    result = run.result()
    [branch] = result.branches
    assert (branch.output, branch.is_rejected, status.kept_rejected) == ("NOTE x kindly", True, 1)
    assert branch.steps["mixed"]["score"] == 0
    assert {name: used.calls for name, used in result.usage_by_model.items()} == {
        "openai/m": 3, "openai/judge": 5,
    }  # fmt: skip
    asked = [body for _, _, body in provider.requests if body and body["model"] == "judge"]
    # A judge does not learn which model wrote.
    assert "openai" not in json.dumps(asked)
    assert any(RULE in one["content"] for one in asked[0]["messages"] if one["role"] == "system")
