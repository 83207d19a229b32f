"""The failed branches of a run for callers."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self

from fanout.core.step_answers import answers_of

if TYPE_CHECKING:
    from fanout.core.cells import Cell
    from fanout.core.records import ErrorKind, StepOutcome
    from fanout.runs.branch_output import Output

__all__ = ["BranchError"]


@dataclass(frozen=True, kw_only=True, slots=True)
class BranchError:
    """One failed branch.

    Attributes:
        index: The position in ``Result.outputs`` that is None.
        document: The document's name.
        kind: Why it failed.
        message: One line about the failure.
        attempts: Calls made for it.
        aspect: The name of its prompt, or None.
        model: The model that it asked first.
        sample: 0-based number of the sample.
        columns: The other columns of the document's row: JSON values.
        pages: The numbers of the pages that the chunk is on, from 1 on; empty if unknown.
        headings: The path of headings at the chunk's beginning; empty if there is none.
        finish_reason: Why the last answer ended, in the provider's words; None if it did not say.
        votes: How often each answer was given, if the branch asked for several.
        samples: How many answers it asked for; None in a run without ``certainty``.
        step_records: The steps that ran, the failed one last; empty in a run without steps.
    """

    index: int
    document: str
    kind: ErrorKind
    message: str
    attempts: int
    aspect: str | None = None
    model: str | None = None
    sample: int = 0
    columns: dict[str, Cell] = field(default_factory=dict)
    pages: list[int] = field(default_factory=list)
    headings: str = ""
    finish_reason: str | None = None
    votes: dict[str, int] = field(default_factory=dict)
    samples: int | None = None
    step_records: tuple[StepOutcome, ...] = ()

    @classmethod
    def of(cls, branch: Output[Any]) -> Self:
        """Return the record of a branch that failed."""
        shared = {one.name: getattr(branch, one.name) for one in fields(cls)}
        return cls(**{**shared, "message": branch.message or ""})

    @property
    def steps(self) -> dict[str, Any]:
        """The answers of the steps that ran before the failure, as ``Output.steps`` has them."""
        return answers_of(self.step_records)
