"""The ids of the calls of steps in batches."""

import pytest

from fanout.core.ids import BranchId, ShardId
from fanout.core.records import ErrorKind, StepOutcome
from fanout.core.spec import make_spec
from fanout.policy.answers_so_far import AnswersSoFar
from fanout.policy.steps import Chain, at_step, turn_of
from tests.fakes import RUN, FakeContext, run_branch
from workers.branch.batch_lane import item_of
from workers.branch.execution import BranchFailed
from workers.branch.late_results import _step_of
from workers.telemetry.reports import Calls

BRANCH = BranchId("r", 0, 0, 0)
STEPS = [
    {"name": "note", "prompt": "{input}"},
    {"name": "check", "judge": "note", "criteria": "c"},
]
NO = '{"reasons": "r", "pass": false, "score": 1, "feedback": "f"}'


def so_far(*answers):
    steps = tuple(StepOutcome(name=name, output=text) for name, text in answers)
    return AnswersSoFar(steps=steps)


@pytest.mark.parametrize(
    ("done", "step"),
    [
        ((), "note 1"),
        ((("note", "a"),), "check 1"),
        ((("note", "a"), ("check", NO)), "note 2"),
        ((("note", "a"), ("check", NO), ("note", "b")), "check 2"),
    ],
)
def test_a_call_is_that_of_its_step_and_round_however_many_were_counted(done, step):
    spec = make_spec(model="fake", steps=STEPS)
    chain = Chain(spec.steps, so_far(*done).steps)
    assert turn_of(chain, chain.next) == step
    calls = Calls(0.0)
    calls.so_far = so_far(*done)
    assert _step_of(spec, calls) == step
    # A step that the cache has answered has made no call: the number is the same.
    items = {item_of(BRANCH, "m", 0, 1, step=one) for one in ("", "note 1", "check 1", "note 2")}
    assert len(items) == 4


def test_a_job_without_steps_has_the_ids_that_it_had():
    calls = Calls(0.0)
    assert _step_of(make_spec(model="fake", prompt="{input}"), calls) == ""
    assert item_of(BRANCH, "m", 0, 1) == item_of(BRANCH, "m", 0, 1, step="")


@pytest.mark.parametrize(
    ("done", "message"),
    [
        # Before the first checkpoint, cached steps may have answered.
        ((), "why"),
        ((("note", "a"),), "step check: why"),
        ((("note", "a"), ("check", NO)), "step note: why"),
        # Of another version of the job.
        ((("other", "a"),), "why"),
    ],
)
def test_an_ending_from_outside_names_the_step_that_the_branch_was_at(done, message):
    steps = make_spec(model="fake", steps=STEPS).steps
    assert at_step("why", steps, so_far(*done).steps) == message


class Died(BaseException):
    """The worker process has died."""


@pytest.mark.parametrize(("step", "others"), [("a", []), ("b", []), ("b", ["another"])])
def test_a_branch_that_kills_its_workers_names_the_step(step, others):
    """Also one whose earlier answer was kept for another branch, and cost no call."""
    context = FakeContext(
        prompt=None,
        steps=[{"name": "a", "prompt": "A"}, {"name": "b", "prompt": "B {a} {input}"}],
    )
    context.llm.identity = "m"
    context.write([*others, "deadly"])
    asked = []

    def answer(request):
        asked.append(request.prompt)
        is_deadly = "deadly" in request.prompt or step == "a"
        if request.prompt.startswith(step.upper()) and is_deadly:
            raise Died
        return "an answer"

    context.answer = answer
    for at in range(len(others)):
        run_branch(context, BranchId(RUN, 0, 0, at))
    # The kept answer is written down in the second delivery: that is progress, and counts anew.
    for error in (Died, Died, *[Died] * len(others), BranchFailed):
        with pytest.raises(error):
            run_branch(context, BranchId(RUN, 0, 0, len(others)))
    assert asked.count("A") == (2 if step == "a" else 1)
    outcome = context.store.outcomes(ShardId(RUN, 0, 0))[len(others)]
    assert outcome.kind is ErrorKind.POISONED
    assert outcome.message == f"step {step}: the worker died 2 times while it ran this branch"
