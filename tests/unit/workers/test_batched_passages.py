"""Passages that a function finds for calls of the batch lane: a result answers the prompt that was sent."""

from __future__ import annotations

import pytest

from fanout.core.errors import LLMError, LostDataError
from fanout.core.records import ErrorKind
from fanout.llm.callables import CallableLLM
from tests.fakes import RUN
from tests.unit.workers.test_batching import Fleet, Provider

PROMPT = "{context} {input}"
JOBS = {
    "prompt": {"prompt": PROMPT},
    "votes": {"prompt": PROMPT, "samples": 2, "certainty": 0.9},
    "step": {"prompt": None, "steps": [{"name": "a", "prompt": PROMPT}]},
    "judged": {
        "prompt": None,
        "steps": [
            {"name": "a", "prompt": PROMPT},
            {"name": "check", "judge": "a", "criteria": "c"},
        ],
    },
}
VERDICT = '{"reasons": "r", "pass": true, "score": 9, "feedback": ""}'


class Search:
    """Finds another passage each time, until it fails."""

    def __init__(self, lasts):
        self.calls = 0
        self._lasts = lasts

    async def __call__(self, _query, _k):
        self.calls += 1
        if self.calls > self._lasts:
            raise LLMError(ErrorKind.BAD_REQUEST, "the index is gone")
        return [{"id": f"p{self.calls}", "text": f"version {self.calls}"}]


def answer(line):
    return {"text": VERDICT if "criteria" in line["prompt"] else line["prompt"]}


@pytest.mark.parametrize("name", JOBS)
def test_a_result_is_taken_with_the_passages_that_its_prompt_had(name, monkeypatch):
    search = Search(lasts=1)
    provider = Provider(answer)
    fleet = Fleet(monkeypatch, provider, texts=["text"], retrieve="m:find", **JOBS[name])
    fleet.context.models.made["m:find"] = CallableLLM(search)
    fleet.finish()
    (outcome,) = fleet.outcomes.values()
    assert (outcome.kind, search.calls) == (None, 1), outcome.message
    assert "version 1" in outcome.output
    uses = outcome.passages or outcome.steps[0].passages
    assert [use.id for use in uses] == ["p1"]
    # What was sent is what an answer is kept for: the same prompt is a hit, and another one is not.
    sent = [line for lines in provider.made.values() for line in lines]
    assert all("version 1" in line["prompt"] for line in sent)


@pytest.mark.parametrize("name", ["prompt", "step"])
def test_a_call_that_was_paid_counts_though_its_passages_are_lost(name, monkeypatch):
    fleet = Fleet(
        monkeypatch,
        Provider(),
        texts=["text"],
        retrieve="docs/",
        budget={"calls": 5},
        **JOBS[name],
    )

    class Passages:
        calls = 0

        async def search(self, *_given):
            self.calls += 1
            if self.calls > 1:
                raise LostDataError("the index is lost")
            return []

    monkeypatch.setattr(fleet.context.passages, "search", Passages().search)
    fleet.finish()
    (outcome,) = fleet.outcomes.values()
    assert (outcome.kind, outcome.attempts, outcome.usage.calls) == (ErrorKind.LOST, 1, 1)
    assert outcome.usage.input_tokens == 5
    state = fleet.store.budget(RUN)
    assert (state.spent.calls, state.held.calls, state.unsure.calls) == (1, 0, 0)
