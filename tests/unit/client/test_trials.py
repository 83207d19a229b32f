"""The job of a trial."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fanout import FakeLLM, ParallelCalls
from fanout.cli.estimate_view import trial_lines
from fanout.client.trials import spec_of_trial
from fanout.core.spec import make_spec, stored_spec
from tests.unit.core.test_spec import VALUES, job_with


@pytest.mark.parametrize("field", VALUES)
def test_the_job_of_a_trial_can_be_stored_with_any_field_of_the_job(field):
    own = spec_of_trial(make_spec(**job_with(field)))
    assert stored_spec(own.model_dump_json()) == own


def test_a_trial_has_the_lane_of_its_job_and_the_deadline_that_the_lane_goes_by():
    fields = {"model": "openai/m", "prompt": "{input}", "deadline_s": 9}
    late = spec_of_trial(make_spec(**fields, lane="auto"))
    assert (late.lane, late.deadline_s) == ("auto", 9)
    assert spec_of_trial(make_spec(**fields, lane="batch")).deadline_s is None


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"retrieve": "mod:find", "prompt": "{context} {input}"}, True),
        ({"steps": [{"name": "a", "prompt": "{context} {input}", "retrieve": "mod:find"}]}, True),
        ({"split": "model", "prompt": "{input}"}, True),
        ({"aggregate_prompt": "{input}", "prompt": "{input}"}, False),
    ],
)
def test_a_trial_has_the_window_that_its_prompts_go_by(fields, kept):
    own = spec_of_trial(make_spec(model="openai/m", context_tokens=3_000, **fields))
    assert own.context_tokens == (3_000 if kept else None)
    assert stored_spec(own.model_dump_json()) == own


def test_a_trial_has_documents_that_a_model_splits_and_the_job_makes_their_calls():
    parts = [
        {"title": "a", "first_words": "Budget of", "last_words": ""},
        {"title": "b", "first_words": "Travel of", "last_words": ""},
    ]

    asked = []

    def answer(request):
        asked.append((request.prompt, request.system))
        is_map = request.prompt.startswith("MAP")
        return request.prompt if is_map else json.dumps({"parts": parts})

    texts = [f"Budget of {n}. It is large.\n\nTravel of {n}. It is far." for n in range(8)]
    job: dict[str, Any] = {
        "prompt": "MAP {title} {input} {after}",
        "split": "model",
        "neighbours": 1,
    }
    with ParallelCalls(FakeLLM(script=answer)) as runner:
        trial = runner.trial([*texts, " "], size=3, **job)
        result = runner.run(texts, **job)
    assert (trial.documents, trial.chunks, trial.branches, trial.succeeded) == (3, 6, 6, 6)
    [first, *_] = trial_lines(trial)
    assert first == "trial: 3 of 8 documents in 6 parts, 6 of 6 branches succeeded"
    assert "all 8 documents, by the sample:" in trial_lines(trial)
    # One call that splits and two for its parts, of each document: those of the trial are the job's.
    tried, of_job = asked[:9], asked[9:]
    assert len(of_job) == result.usage.calls == 24
    assert set(tried) < set(of_job)
    assert trial.input_tokens is not None
    assert trial.input_tokens.value == pytest.approx(result.usage.input_tokens, rel=0.05)


def test_what_the_budget_cuts_of_a_sample_is_no_chance():
    texts = [f"text {n}" for n in range(40)]
    with ParallelCalls(FakeLLM()) as runner:
        trial = runner.trial(texts, "{input}", size=20, budget={"calls": 10})
    assert (trial.succeeded, trial.errors, trial.cut_chunks) == (10, {"budget": 10}, 10)
    assert trial.failures is not None
    assert trial.failures.value == trial.failures.low == 0
    rooms = [trial.budget, trial.estimate.budget]
    assert [room and (room.enough_likely, room.branches) for room in rooms] == [(10, 40)] * 2
