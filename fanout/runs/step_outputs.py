"""A branch with the answer of one of its steps in the place of its output."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fanout.core.records import ErrorKind
from fanout.core.step_answers import last_answers

if TYPE_CHECKING:
    from fanout.runs.branch_output import Output

__all__ = ["output_of_step"]


def output_of_step(branch: Output[Any], name: str) -> Output[Any]:
    """Return a branch with the last answer of a step as its output, failed if that did not run."""
    answers, found = branch.steps, last_answers(branch.step_records).get(name)
    return replace(
        branch,
        output=answers.get(name),
        json=None,
        confidence=None if found is None else found.confidence,
        kind=None if name in answers else branch.kind or ErrorKind.INVALID_OUTPUT,
    )
