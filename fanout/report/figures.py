"""The figures of a run, for its report and for ``fanout report --json``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from fanout.core.records import ErrorKind  # noqa: TC001 - msgspec reads the annotation
from fanout.report.durations import DurationFigures  # noqa: TC001 - the same
from fanout.report.models import ModelFigures  # noqa: TC001 - msgspec reads the annotation
from fanout.report.slices import SliceFigures  # noqa: TC001 - the same

if TYPE_CHECKING:
    from fanout.runs.branch_output import Output

__all__ = [
    "Answer",
    "AttemptRow",
    "DocumentFigures",
    "ErrorExample",
    "ErrorRow",
    "Figures",
    "Rejections",
    "ShownBranch",
    "ShownStep",
    "Tally",
    "TokenFigures",
]


class ShownBranch(msgspec.Struct, frozen=True, kw_only=True):
    """A branch, as the report shows it.

    Attributes:
        document: The document's name, truncated if it is very long.
        aspect: The name of its prompt, or None.
        model: The model that answered; the one that was asked first, if none did.
        sample: The 0-based number of the sample.
        title: What the model that split the document calls its part; None if none has, or it gave none.
        elapsed_s: Seconds from its first call to its end.
    """

    index: int
    document: str
    aspect: str | None
    model: str | None = None
    sample: int
    title: str | None = None
    attempts: int
    elapsed_s: float
    kind: ErrorKind | None


class ShownStep(msgspec.Struct, frozen=True, kw_only=True):
    """A step that a branch has made.

    Attributes:
        name: The name of the step.
        round: Which answer of it this is, from 1 on: a judge may have sent some back.
        answer: The answer, truncated if it is long; the error, if it failed.
        kind: Why it failed, or None.
    """

    name: str
    round: int
    answer: str
    kind: ErrorKind | None = None


class ErrorExample(msgspec.Struct, frozen=True, kw_only=True):
    """A failed branch, its error message, and its steps until then."""

    branch: ShownBranch
    message: str
    steps: list[ShownStep] = []


class ErrorRow(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of error: the number of its branches, and examples of them."""

    kind: ErrorKind
    count: int
    examples: list[ErrorExample]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A branch with an output, with its text and output, truncated if they are long.

    The text is None if it is not known. Passages are those of its prompts: their ids, and where they are
    from.
    """

    branch: ShownBranch
    output: str
    text: str | None = None
    passages: list[str] = []


class Rejections(msgspec.Struct, frozen=True, kw_only=True):
    """The branches whose answer a judge did not pass in its last round.

    Attributes:
        kept: Those whose answer was kept as an output.
        failed: Those that failed for it.
        examples: The first of them, with their steps.
    """

    kept: int = 0
    failed: int = 0
    examples: list[ErrorExample] = []


class Tally(msgspec.Struct, kw_only=True):
    """The numbers of succeeded and failed branches of a document or an aspect."""

    name: str
    succeeded: int = 0
    failed: int = 0

    def count(self, branch: Output[Any]) -> None:
        """Count one more branch."""
        if branch.kind is None:
            self.succeeded += 1
        else:
            self.failed += 1


class AttemptRow(msgspec.Struct, kw_only=True):
    """The numbers of succeeded and failed branches with the same number of calls."""

    attempts: int
    succeeded: int = 0
    failed: int = 0


class DocumentFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Documents by how their branches ended.

    Attributes:
        complete: All that have ended succeeded.
        partial: Some succeeded and some failed.
        failed: None succeeded.
        worst: The documents with the most failed branches.
    """

    complete: int
    partial: int
    failed: int
    worst: list[Tally]


class TokenFigures(msgspec.Struct, kw_only=True):
    """The known usage of the branches; the sums are of known values, and so a minimum.

    Attributes:
        answered: Branches with an output.
        known: Branches with an output whose input and output tokens are known, at least in part.
        input_tokens: Known input tokens, those of failed branches included.
        output_tokens: Known output tokens, those of failed branches included.
        priced: Branches with an output whose cost is known, at least in part.
        cost_usd: Known cost in US dollars.
    """

    answered: int = 0
    known: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    priced: int = 0
    cost_usd: float = 0.0


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """All figures of a run's branches.

    Attributes:
        succeeded: Branches with an output.
        failed: Branches with an error.
        calls: Calls that these branches made.
        repeated: Those of them that asked a question once more, after a failed call.
        errors: The errors by kind, the most frequent first.
        attempts: The branches by number of calls.
        durations: The durations of the branches that made a call.
        over_time: The branches over time.
        tokens: Their usage, as far as it is known.
        aspects: The branches by aspect; empty if the run has a single prompt.
        models: The branches and the usage by model.
        documents: The documents by how their branches ended.
        slowest: The branches that took longest.
        answers: A sample of the answers, spread evenly over the run.
        rejections: What judges did not pass; None in a run without a judge.
    """

    succeeded: int
    failed: int
    calls: int
    repeated: int
    errors: list[ErrorRow]
    attempts: list[AttemptRow]
    durations: DurationFigures
    over_time: SliceFigures
    tokens: TokenFigures
    aspects: list[Tally]
    models: list[ModelFigures]
    documents: DocumentFigures
    slowest: list[ShownBranch]
    answers: list[Answer]
    rejections: Rejections | None = None

    @property
    def done(self) -> int:
        """Branches that have ended."""
        return self.succeeded + self.failed

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as JSON values: part of the output of ``fanout report --json``."""
        built: dict[str, Any] = msgspec.to_builtins(self)
        return built
