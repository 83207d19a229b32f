"""One branch of a run for callers: where it stands in the input, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic

from typing_extensions import TypeVar

from fanout.core.records import NO_CALL, share_of
from fanout.core.step_answers import answers_of

if TYPE_CHECKING:
    from fanout.core.cells import Cell
    from fanout.core.lanes import Lane
    from fanout.core.passage_uses import PassageUse
    from fanout.core.records import ErrorKind, StepOutcome, Usage

__all__ = ["AnswerT", "Output"]

AnswerT = TypeVar("AnswerT", default=str)


@dataclass(frozen=True, kw_only=True, slots=True)
class Output(Generic[AnswerT]):
    """One branch of a run, failed or not: its place in the input, and its outcome.

    Attributes:
        index: Its position in ``Result.outputs``.
        document: The document's name.
        document_index: The document's 0-based position in the input.
        chunk: The index of its chunk in the run.
        position: The 0-based position of the chunk in its document.
        start: The offset in the document of the chunk's first character.
        end: The offset after its last character.
        aspect: The name of its prompt, or None if the run has a single prompt.
        sample: 0-based number of the sample.
        output: The answer, or None if the branch failed. Text; with a ``schema`` a JSON value, or an
            instance of the type that the schema was given as.
        kind: Why it failed, or None.
        message: One line about the failure, or None.
        attempts: Calls made for it.
        usage: Their usage.
        saved: What the answers had cost that came from the cache, without a call.
        elapsed_s: Seconds from the first call to the end, waits included.
        ended_at: When it ended, in seconds since the epoch; 0 if unknown.
        model: The model that answered; the one that was asked first, if none did.
        asked_model: The model that was asked first: another one is its ``fallback``. None if the branch
            asked several models in turn, for a vote.
        has_fallback: Whether another model may have answered.
        finish_reason: Why the last answer ended, in the provider's words; None if it did not say.
        lane: How the answer was bought, in a job with a ``lane``; None in others, or without an answer,
            unless a batch had its last call.
        is_cut: Whether the answer was cut off at a limit of tokens, and kept.
        confidence: The probability of the chosen label by the model, 0 to 1; None if unknown.
        votes: How often each answer was given, if the branch asked until one had a majority.
        samples: How many answers it asked for until then; None in a run without ``certainty``.
        usage_of: The usage by model, if the branch called several.
        columns: The other columns of the document's row: JSON values.
        text_at: The position of the text among the columns of the row; None if it is no row.
        text_column: The name of the text's column; None if it is no row.
        pages: The numbers of the pages that the chunk is on, from 1 on; empty if unknown.
        headings: The path of headings at the chunk's beginning; empty if there is none.
        title: The title of the part, where a model has split the document; empty where it gave none.
        subtask: What to do, where a model has split the work on the document; else empty.
        text: The chunk, if it is a column of a row, or if the caller asked for it, else None.
        json: The answer as a JSON value, where ``output`` is an instance of a type.
        step_records: The steps of the branch in the order in which they ran, a failed one last; empty in
            a run without steps.
        is_rejected: Whether a judge did not pass the output; None in a run without a judge.
        is_best: Whether it is the best output of its chunk; None in a run that does not look for it, or
            has not found it yet.
        has_rank: Whether the run ranks answers.
        rank: Its rank among those of its group, from 1; None if it is not among those that the ranking
            has, or if there is no ranking yet.
        passages: The passages that were found for the prompt, best first, with how much of each there was
            room for; of a branch with steps each step has its own. None in a run without ``retrieve``.
    """

    index: int
    document: str
    document_index: int
    chunk: int
    position: int
    start: int
    end: int
    aspect: str | None
    sample: int
    output: AnswerT | None
    kind: ErrorKind | None
    message: str | None
    attempts: int
    usage: Usage
    elapsed_s: float
    ended_at: float = 0.0
    model: str | None = None
    asked_model: str | None = None
    has_fallback: bool = False
    finish_reason: str | None = None
    lane: Lane | None = None
    is_cut: bool = False
    confidence: float | None = None
    votes: dict[str, int] = field(default_factory=dict)
    samples: int | None = None
    usage_of: dict[str, Usage] = field(default_factory=dict)
    columns: dict[str, Cell] = field(default_factory=dict)
    text_at: int | None = None
    text_column: str | None = None
    pages: list[int] = field(default_factory=list)
    headings: str = ""
    title: str | None = None
    subtask: str = ""
    text: str | None = None
    json: Any = None
    saved: Usage = NO_CALL
    step_records: tuple[StepOutcome, ...] = ()
    is_rejected: bool | None = None
    is_best: bool | None = None
    has_rank: bool = False
    rank: int | None = None
    passages: tuple[PassageUse, ...] | None = None

    @property
    def steps(self) -> dict[str, Any]:
        """The answer of each step that ran in the last round: text, or a JSON value where it has a schema."""
        return answers_of(self.step_records)

    @property
    def has_latency(self) -> bool:
        """Whether ``elapsed_s`` is the time of calls: that of a batch is no call's."""
        return self.attempts > 0 and self.lane != "batch"

    @property
    def cached(self) -> bool:
        """Whether an answer came from the cache."""
        return self.saved.calls > 0

    @property
    def saved_usd(self) -> float | None:
        """What that saved, in US dollars; 0 without such an answer, None if it is unknown."""
        return self.saved.cost_usd

    @property
    def value(self) -> Any:
        """The answer as a JSON value: what files and tables have."""
        return self.output if self.json is None else self.json

    @property
    def share(self) -> float | None:
        """The votes for the output, by all votes of the branch; None if it has none, or failed."""
        return share_of(self.votes) if self.kind is None else None
