"""A retry of branches with steps asks anew for what had failed, and for no more."""

from __future__ import annotations

import json

import pytest

from fanout.core.ids import BranchId, ShardId, StageId
from fanout.core.records import ErrorKind
from fanout.runs.retried_runs import reset_retried_shard
from tests.fakes import RUN, FakeContext
from tests.unit.workers.test_batching import Fleet, Provider
from workers.reduce.stages import aggregate, collect

SHARD = ShardId(RUN, 0, 0)
INVALID = frozenset({ErrorKind.INVALID_OUTPUT})
STEPS = [
    {"name": "one", "prompt": "ONE {input}"},
    {
        "name": "two",
        "prompt": "TWO {one}",
        "schema": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
    },
]


def test_a_retried_call_of_a_batch_does_not_take_the_failure_from_before(monkeypatch):
    is_well = False

    def answer(line):
        return {"text": '{"n": 1}' if is_well or "ONE" in line["prompt"] else "nonsense"}

    provider = Provider(answer)
    fleet = Fleet(monkeypatch, provider, texts=["t"], prompt=None, steps=STEPS, max_reasks=0)
    fleet.finish()
    assert {outcome.kind for outcome in fleet.outcomes.values()} == INVALID
    collect(fleet.context, [], SHARD)
    aggregate(fleet.context, StageId(RUN, 0))
    is_well = True
    assert fleet.store.reopen_run(RUN, retry=INVALID)
    reset_retried_shard(fleet.store, SHARD, INVALID)
    fleet.messages = [BranchId(RUN, 0, 0, 0)]
    fleet.finish()
    (outcome,) = fleet.outcomes.values()
    assert (outcome.output, outcome.attempts) == ('{"n":1}', 1)
    prompts = [line["prompt"][:3] for lines in provider.made.values() for line in lines]
    assert prompts == ["ONE", "TWO", "TWO"]


@pytest.mark.parametrize("judged", ["note", "facts"])
def test_what_a_judge_rejected_is_asked_anew_though_its_answers_are_kept(judged):
    """The cache would give the same draft, and the same verdict on it."""
    asked, scores = [], [0, 9]

    def answer(request):
        name = request.prompt.split()[0]
        asked.append(name)
        if name not in ("FACTS", "NOTE"):
            score = scores.pop(0)
            return json.dumps({"reasons": "r", "pass": score > 0, "score": score, "feedback": "f"})
        return f"{name} {len(asked)}"

    steps = [
        {"name": "facts", "prompt": "FACTS {input}"},
        {"name": "note", "prompt": "NOTE {facts}"},
        {"name": "check", "judge": judged, "criteria": "c", "max_rounds": 1},
    ]
    context = FakeContext(prompt=None, steps=steps, on_rejected="fail")
    context.answer = answer
    context.llm.identity = "kept"
    context.write(["t"])
    context.process()
    first = asked[:]
    assert context.store.stage(StageId(RUN, 0)).errors == {ErrorKind.INVALID_OUTPUT: 1}
    asked.clear()
    assert context.store.reopen_run(RUN, retry=INVALID)
    context.process()
    assert context.store.stage(StageId(RUN, 0)).succeeded == 1
    assert asked == first[0 if judged == "facts" else 1 :]
