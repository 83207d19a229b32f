"""The figures of a run: what its report shows, and what ``fanout report --json`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from fanout.core.records import ErrorKind  # noqa: TC001 - msgspec reads the annotation
from fanout.report.durations import DurationFigures  # noqa: TC001 - the same
from fanout.report.slices import SliceFigures  # noqa: TC001 - the same

if TYPE_CHECKING:
    from fanout.runs.results import Output

__all__ = [
    "Answer",
    "AttemptRow",
    "DocumentFigures",
    "ErrorExample",
    "ErrorRow",
    "Figures",
    "Place",
    "Tally",
    "TokenFigures",
]


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A branch as the page names it.

    Attributes:
        index: Its index in the run.
        document: The document's name, cut where it is very long.
        aspect: The name of its prompt, or None.
        sample: 0-based number of the sample.
        attempts: Calls made for it.
        elapsed_s: Seconds from its first call to its end.
        kind: Why it failed, or None.
    """

    index: int
    document: str
    aspect: str | None
    sample: int
    attempts: int
    elapsed_s: float
    kind: ErrorKind | None


class ErrorExample(msgspec.Struct, frozen=True, kw_only=True):
    """A branch that failed in some way, and its message."""

    branch: Place
    message: str


class ErrorRow(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of error: how many branches failed so, and some of them."""

    kind: ErrorKind
    count: int
    examples: list[ErrorExample]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One of the branches with an output: the text and the output, cut where they are long.

    The text is None where it is not known.
    """

    branch: Place
    output: str
    text: str | None = None


class Tally(msgspec.Struct, kw_only=True):
    """How many branches of something succeeded and failed."""

    name: str
    succeeded: int = 0
    failed: int = 0

    def count(self, branch: Output) -> None:
        """Count one more branch."""
        if branch.kind is None:
            self.succeeded += 1
        else:
            self.failed += 1


class AttemptRow(msgspec.Struct, kw_only=True):
    """How the branches with this number of calls ended."""

    attempts: int
    succeeded: int = 0
    failed: int = 0


class DocumentFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Documents by how their branches ended.

    Attributes:
        complete: All that have ended succeeded.
        partial: Some succeeded and some failed.
        failed: None succeeded.
        worst: Those with the most failed branches.
    """

    complete: int
    partial: int
    failed: int
    worst: list[Tally]


class TokenFigures(msgspec.Struct, kw_only=True):
    """What is known of the branches' usage; a sum of known values is a minimum, not a total.

    Attributes:
        answered: Branches with an output.
        known: Those of them whose tokens are known, in and out.
        input_tokens: Tokens in, as far as known, also of branches that failed.
        output_tokens: Tokens out, likewise.
        priced: Branches with an output whose cost is known.
        cost_usd: Cost, as far as known.
    """

    answered: int = 0
    known: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    priced: int = 0
    cost_usd: float = 0.0


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """How the branches of a run ended, and what they took.

    Attributes:
        succeeded: Branches with an output.
        failed: Branches with an error.
        calls: Calls that these branches made.
        errors: By kind, the most frequent first.
        attempts: By number of calls.
        durations: How long the branches took that made a call.
        over_time: What ended when.
        tokens: Their usage, as far as it is known.
        aspects: By aspect; empty where the run has a single prompt.
        documents: By document.
        slowest: The branches that took longest.
        answers: Some answers, from all over the run.
    """

    succeeded: int
    failed: int
    calls: int
    errors: list[ErrorRow]
    attempts: list[AttemptRow]
    durations: DurationFigures
    over_time: SliceFigures
    tokens: TokenFigures
    aspects: list[Tally]
    documents: DocumentFigures
    slowest: list[Place]
    answers: list[Answer]

    @property
    def done(self) -> int:
        """Branches that have ended."""
        return self.succeeded + self.failed

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON-able values: part of what ``fanout report --json`` prints."""
        built: dict[str, Any] = msgspec.to_builtins(self)
        return built
