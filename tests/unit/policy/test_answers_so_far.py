"""What is left of a branch that ends outside of its calls."""

from __future__ import annotations

import pytest

from fanout.core.records import ErrorKind, Outcome, StepOutcome, Usage
from fanout.policy.answers_so_far import AnswersSoFar

STEP = StepOutcome(name="facts", output="x", attempts=1)
LOST = Outcome(index=3, kind=ErrorKind.WORKER_LOST, message="its worker was lost")


@pytest.mark.parametrize(
    ("so_far", "attempts"),
    [
        # A retry has begun with what an earlier attempt has paid for.
        (AnswersSoFar(steps=(STEP,)), 0),
        (AnswersSoFar().with_step(StepOutcome(name="facts", output="x"), {}), 0),
        (AnswersSoFar().with_step(STEP, {"m": Usage(input_tokens=1)}), 1),
    ],
)
def test_a_lost_branch_keeps_its_steps(so_far, attempts):
    lost = so_far.lost(LOST)
    assert lost.steps == so_far.steps
    assert (lost.index, lost.kind, lost.attempts) == (3, LOST.kind, attempts)


def test_a_lost_branch_without_answers_is_as_it_was():
    assert AnswersSoFar().lost(LOST) == LOST
