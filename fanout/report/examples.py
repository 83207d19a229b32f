"""Branches as the report shows them, with their steps, and those whose answers judges did not pass."""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from fanout.report.figures import ErrorExample, Rejections, ShownBranch, ShownStep
from fanout.report.text import one_line

if TYPE_CHECKING:
    from fanout.runs.branch_output import Output

__all__ = ["NAME_CHARS", "RejectionCounter", "shown_branch", "shown_passages", "shown_steps"]

NAME_CHARS = 200
_EXAMPLES = 5
_STEPS = 12
_PASSAGES = 10
_ANSWER_CHARS = 300


class RejectionCounter:
    """Counts the branches whose answer a judge did not pass, and keeps the first ones."""

    def __init__(self) -> None:
        self._has_judge = False
        self._counts = {"kept": 0, "failed": 0}
        self._examples: list[ErrorExample] = []

    def add(self, branch: Output[Any]) -> None:
        """Count a branch of a run with a judge."""
        self._has_judge = True
        if not branch.is_rejected:
            return
        self._counts["kept" if branch.kind is None else "failed"] += 1
        if len(self._examples) < _EXAMPLES:
            message = one_line(branch.message or "", _ANSWER_CHARS)
            example = ErrorExample(
                branch=shown_branch(branch), message=message, steps=shown_steps(branch)
            )
            self._examples.append(example)

    def figures(self) -> Rejections | None:
        """Return the counts and the examples; None if no branch has a judge."""
        return Rejections(**self._counts, examples=self._examples) if self._has_judge else None


def shown_steps(branch: Output[Any]) -> list[ShownStep]:
    """Return the last steps of a branch, each answer as one line."""
    return [
        ShownStep(
            name=step.name,
            round=step.round,
            answer=one_line(step.output or step.message or "", _ANSWER_CHARS),
            kind=step.kind,
        )
        for step in branch.step_records[-_STEPS:]
    ]


def shown_passages(branch: Output[Any]) -> list[str]:
    """Return the first passages of the prompts of a branch, each once: its id, and where it is from."""
    uses = chain(branch.passages or (), *(step.passages for step in branch.step_records))
    found = {
        f"[{one.id}] {' > '.join(filter(None, (one.source, one.title)))}".rstrip(): None
        for one in uses
        if one.share > 0
    }
    return [one_line(shown, NAME_CHARS) for shown in islice(found, _PASSAGES)]


def shown_branch(branch: Output[Any]) -> ShownBranch:
    """Return a branch without its texts."""
    return ShownBranch(
        index=branch.index,
        document=one_line(branch.document, NAME_CHARS),
        aspect=branch.aspect,
        model=branch.model,
        sample=branch.sample,
        title=one_line(branch.title, NAME_CHARS) if branch.title else None,
        attempts=branch.attempts,
        elapsed_s=branch.elapsed_s,
        kind=branch.kind,
    )
