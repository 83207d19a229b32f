"""The columns of steps in tables: one for each, or one for each field of an answer in JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fanout.runs.tables.columns import field_cell

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from fanout.core.cells import Cell
    from fanout.runs.branch_output import Output
    from fanout.runs.rows import RowLayout, StepRow

__all__ = ["STEP", "StepColumns"]

# What is before a step that has the name of another column.
STEP = "steps."


class StepColumns:
    """The columns of the steps of a run, beside that of the output.

    Args:
        layout: What the rows of the run have.
        taken: The names of fanout's own columns.
        prefix: What is before each name, or empty.
    """

    def __init__(self, layout: RowLayout, taken: Container[str], prefix: str = "") -> None:
        self._names = {step.name: prefix + _free(step, layout, taken) for step in layout.steps}
        self._steps = layout.steps

    def names(self) -> Iterator[list[str]]:
        """Yield for each step the names of the columns that are known before the answers are.

        One whose answer may be the output has none: only rows show that it is not.
        """
        for step in self._steps:
            name = self._names[step.name]
            fields = [f"{name}.{field}" for field in step.fields]
            yield [] if step.is_open or step.is_final else fields or [name]

    def cells(self, branch: Output[Any]) -> list[dict[str, Cell]]:
        """Return for each step the cells of a branch by column; one that did not run has none."""
        answers = branch.steps
        # The last of these that ran; a judge behind it may have failed, and so the branch.
        final = [step.name for step in self._steps if step.is_final and step.name in answers]
        if final and branch.kind is None:
            output = max(final, key=list(answers).index)
            answers = {name: answer for name, answer in answers.items() if name != output}
        return [_cells(name, answers.get(step)) for step, name in self._names.items()]


def _cells(name: str, answer: Any) -> dict[str, Cell]:
    if isinstance(answer, dict):
        return {f"{name}.{field}": field_cell(one) for field, one in answer.items()}
    return {} if answer is None else {name: field_cell(answer)}


def _free(step: StepRow, layout: RowLayout, taken: Container[str]) -> str:
    is_taken = step.name in taken or step.name in layout.fields
    return STEP + step.name if is_taken else step.name
