"""Documents that a model splits: exact calls, and nothing lost or paid twice wherever a client dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter

import pytest

from fanout import RunStatus
from fanout.core.plan_runs import plan_run
from fanout.core.records import ErrorKind
from fanout.core.spec import make_spec
from tests.held_provider import HeldProvider
from tests.integration.conftest import QUICK
from tests.scripted_provider import openai_reply

from .conftest import wait_for

MINUTES = "{0}\n\n1. Budget. The board agreed on {0}.\n\n2. Hiring. Two people for {0}.\n"
JOB = {
    "model": "openai/m",
    "prompt": "MAP {title}|{before}|{input}|{after}",
    "split": "model",
    "split_prompt": "A part is one item.",
    "neighbours": 1,
    "cache": False,
    "fence": False,
}
PLAN = [
    {"title": "Budget", "first_words": "1. Budget. The board", "last_words": "agreed on"},
    {"title": "Hiring", "first_words": "2. hiring.  two people", "last_words": ""},
]


class Provider(HeldProvider):
    """Splits minutes into two items, and repeats what the map asks."""

    def __init__(self):
        super().__init__(_kind, self._answer)
        self.wrong = Counter()
        self.subtasks = None

    def hold_first(self):
        self.hold(lambda _: self.calls.total() == 1)

    def _answer(self, request):
        said = _said(request)
        if _kind(request) == "map":
            return 200, openai_reply(said[0].removeprefix("MAP "))
        if self.subtasks is not None:
            return 200, openai_reply(json.dumps({"subtasks": self.subtasks}))
        for name, times in self.wrong.items():
            if name in said[0] and len(said) <= times * 2:
                wrong = {"title": "?", "first_words": "this is nowhere in it", "last_words": ""}
                return 200, openai_reply(json.dumps({"parts": [wrong]}))
        return 200, openai_reply(json.dumps({"parts": PLAN}))


def _said(request):
    return [one["content"] for one in request["messages"] if one["role"] != "system"]


def _kind(request):
    return "map" if _said(request)[0].startswith("MAP") else "plan"


@pytest.fixture
def provider():
    made = Provider()
    yield made
    made.close()


@pytest.fixture
def environment(provider):
    return {**QUICK, "OPENAI_BASE_URL": provider.url, "OPENAI_API_KEY": "none"}


def texts(*names):
    return [MINUTES.format(name) for name in names]


def answers(run):
    return [one.output for one in run.outcomes()]


WHOLE = [
    "||{0}|1. Budget. The board agreed on",
    "Budget|{0}|1. Budget. The board agreed on|{0}.",
    "|1. Budget. The board agreed on|{0}.|2. Hiring. Two people for {0}.\n",
    "Hiring|{0}.|2. Hiring. Two people for {0}.\n|",
]


def expected(*names):
    return [one.format(name) for name in names for one in WHOLE]


def test_parts_become_chunks_with_exact_calls_and_all_is_one_run(
    client, start_worker, provider, environment
):
    start_worker(**environment)
    notices, created = [], []
    provider.wrong["again"] = 1
    provider.wrong["never"] = 9
    run = client.submit(
        make_spec(**JOB, budget={"calls": 30}),
        texts("may", "again", "never"),
        on_notice=notices.append,
        on_created=created.append,
    )
    status = run.wait(120)
    assert status.status is RunStatus.SUCCEEDED
    assert created == [run.run_id]
    # A quote that is not there is asked for once more, then the text is split as Markdown.
    assert provider.calls == {"plan": 1 + 2 + 2, "map": 4 + 4 + 1}
    assert answers(run)[:8] == expected("may", "again")
    assert answers(run)[8] == f"||{texts('never')[0].strip()}|"
    [first, budget, *_] = run.outcomes(with_text=True)
    assert (first.title, budget.title) == ("", "Budget")
    assert (budget.start, budget.text) == (5, "1. Budget. The board agreed on")
    text = "\n".join(one.text for one in notices)
    assert "a model split 2 documents into 4 parts" in text
    assert "is in no part that it named" in text
    assert "did not split 1 text, which is split as markdown" in text
    # The usage, budget and cost of both are those of the run.
    assert status.usage.calls == 14
    assert status.budget.spent.calls == 14
    assert (status.plan.total, status.plan.failed) == (3, 1)
    assert run.result().usage.calls == 14
    plan = client.run(plan_run(run.run_id))
    assert plan.status().usage.calls == 5
    [failed] = [one for one in plan.outcomes() if one.kind is not None]
    assert failed.kind is ErrorKind.INVALID_OUTPUT
    assert "first_words 'this is nowhere in it' do not stand in the text" in failed.message
    assert client.find("latest").run_id == run.run_id
    assert client.find(run.run_id[:5]).run_id == run.run_id
    assert client.resume(plan.run_id).run_id == run.run_id
    run.delete()
    assert list(client.runs()) == []

    # What no part has may be left out, and a budget holds for both together.
    run = client.submit(
        make_spec(**{**JOB, "prompt": "MAP {input}", "neighbours": None, "split_gaps": "leave_out",
                     "budget": {"calls": 2}}),
        texts("june"),
        on_notice=notices.append,
    )  # fmt: skip
    run.wait(120)
    assert "and is left out" in notices[-1].text
    assert [one.kind for one in run.outcomes()] in (
        [None, ErrorKind.BUDGET], [ErrorKind.BUDGET, None],
    )  # fmt: skip
    assert run.status().usage.calls == 2

    # Subtasks are instructions over the whole text.
    provider.subtasks = [{"title": "A", "subtask": "Count."}, {"title": "B", "subtask": "Sum up."}]
    run = client.submit(make_spec(model="openai/m", prompt="MAP {title} {subtask} {input}",
                                  split="model", cache=False, fence=False), ["Two cats."])  # fmt: skip
    run.wait(120)
    assert answers(run) == ["A Count. Two cats.", "B Sum up. Two cats."]


def test_large_documents_are_split_in_pieces_and_keep_headings_and_pages(
    client, start_worker, provider, environment
):
    start_worker(**environment)
    chapters = [
        f"# Chapter {at}\n\n{MINUTES.format(f'm{at}')}{'So it was. ' * 40}" for at in range(9)
    ]
    text = "\n".join(chapters)
    job = {**JOB, "prompt": "MAP {pages} {headings}: {title} {input}", "context_tokens": 800,
           "neighbours": None}  # fmt: skip
    estimate = client.estimate(make_spec(**job), [text])
    run = client.submit(make_spec(**job), [text])
    assert run.wait(120).status is RunStatus.SUCCEEDED
    plan = client.run(plan_run(run.run_id))
    pieces = list(plan.outcomes(with_text=True))
    assert 2 <= len(pieces) <= 9
    assert "".join(one.text for one in pieces) == text
    # An estimate is made by the same pieces.
    assert round(estimate.plan.calls_low) == len(pieces) == provider.calls["plan"]
    outputs = list(run.outcomes(with_text=True))
    assert [text[one.start : one.end] for one in outputs] == [one.text for one in outputs]
    # What stands between the parts is there, too.
    kept = "".join("".join(one.text.split()) for one in outputs)
    assert kept == "".join(text.split())
    assert {one.title for one in outputs} == {"", "Budget", "Hiring"}
    headed = [one for one in outputs if one.title]
    assert all("Chapter" in one.text or one.headings.startswith("Chapter") or one.headings == ""
               for one in headed)  # fmt: skip


def test_a_key_that_is_refused_fails_the_run_with_the_reason(
    client, start_worker, provider, environment
):
    start_worker(**environment)
    answer = provider.respond

    def refuse(headers, request):
        return answer(headers, None) if request is None else (401, {"error": {"message": "no"}})

    provider.respond = refuse
    run = client.submit(make_spec(**JOB), texts("may"))
    status = run.wait(120)
    assert status.status is RunStatus.FAILED
    assert "the model did not split the documents" in status.error
    assert "401" in status.error or "auth" in status.error
    assert status.total == 0


def test_the_fleet_of_a_runner_splits_and_a_file_keeps_its_headings(tmp_path):
    from fanout import ParallelCalls

    (tmp_path / "a.md").write_text("# Top\n\nOne.\n\n## Under\n\nTwo.\n")
    with ParallelCalls(llm="fake") as runner:
        result = runner.run(
            inputs=tmp_path / "a.md", branch_prompt="{headings}: {title} {input}", split="model"
        )
    assert [one.headings for one in result.branches] == ["Top", "Top", "Top > Under", "Top > Under"]
    assert [one.title for one in result.branches] == ["# Top", "One.", "## Under", "Two."]
    assert result.usage.calls == 5
    assert result.usage_by_model.keys() == {"fake"}


CLIENT = """
import sys
from fanout import Client
from fanout.core.spec import make_spec
import json
with Client(sys.argv[1]) as client:
    client.submit(make_spec(**json.loads(sys.argv[2])), json.loads(sys.argv[3]),
                  on_created=lambda run_id: print(run_id, flush=True))
"""


def test_a_killed_client_loses_nothing_and_a_run_is_stopped_with_its_plan(
    client, start_worker, provider, environment, broker_url
):
    start_worker(**environment)

    def killed():
        """A run whose client was killed during its first call."""
        provider.hold_first()
        process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, broker_url, json.dumps(JOB), json.dumps(texts("may"))],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        run_id = process.stdout.readline().strip()
        wait_for(lambda: provider.held, "the call is held up")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        return client.run(run_id)

    run = killed()
    assert run.status().status is RunStatus.ENQUEUING
    assert run.pause()
    assert client.run(plan_run(run.run_id)).status().status is RunStatus.PAUSED
    assert run.unpause()
    provider.go_on()
    # Its documents are stored: they need not be given again.
    assert client.resume(run.run_id).wait(120).status is RunStatus.SUCCEEDED
    assert answers(run) == expected("may")
    assert provider.calls == {"plan": 1, "map": 4}
    assert run.status().usage.calls == 5

    run = killed()
    assert run.cancel()
    wait_for(lambda: run.status().status is RunStatus.CANCELLED, "the run is cancelled")
    plan = client.run(plan_run(run.run_id))
    wait_for(lambda: plan.status().status is RunStatus.CANCELLED, "the plan is cancelled")
    provider.go_on()
    assert client.resume(run.run_id).status().total == 0
    assert provider.calls == {"plan": 1}
    run.delete()
    assert plan_run(run.run_id) not in [one.run_id for one in client.runs()]

    # A client that ends between the split and the rest.
    provider.hold(None)

    def end(notice):
        if "a model split" in notice.text:
            raise KeyboardInterrupt

    made = []
    with pytest.raises(KeyboardInterrupt):
        client.submit(make_spec(**JOB), texts("may"), on_notice=end, on_created=made.append)
    run = client.run(made[0])
    assert run.status().total == 0
    assert client.resume(run.run_id).wait(120).status is RunStatus.SUCCEEDED
    assert answers(run) == expected("may")
    assert provider.calls == {"plan": 1, "map": 4}

    # A client that is asked to stop cancels both.
    provider.hold_first()
    run = client.submit(make_spec(**JOB), texts("may"), should_stop=lambda: bool(provider.held))
    provider.go_on()
    wait_for(lambda: run.status().status is RunStatus.CANCELLED, "the run is stopped")
    plan = client.run(plan_run(run.run_id))
    wait_for(lambda: plan.status().status is RunStatus.CANCELLED, "so is the plan")
    assert provider.calls["map"] == 0
