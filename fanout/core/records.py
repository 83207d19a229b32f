"""The records of a run's data: documents, chunks, shards, branches, outcomes and usage.

They are frozen values, which msgspec encodes as JSON.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from fanout.core.cells import Cell  # noqa: TC001 - msgspec reads the annotation
from fanout.core.lanes import Lane  # noqa: TC001 - msgspec reads the annotation
from fanout.core.parts import Layout, Part  # noqa: TC001 - msgspec reads the annotations
from fanout.core.passage_uses import PassageUse  # noqa: TC001 - msgspec reads the annotation
from fanout.core.usage import (
    NO_CALL,
    QUANTITIES,
    Usage,
    share_of,
    total_saved,
    total_usage,
    usage_by_model,
)

__all__ = [
    "NO_CALL",
    "QUANTITIES",
    "TERMINAL",
    "BranchRef",
    "Chunk",
    "Document",
    "ErrorKind",
    "Outcome",
    "RunStatus",
    "Shard",
    "StepOutcome",
    "Usage",
    "Variants",
    "share_of",
    "total_saved",
    "total_usage",
    "usage_by_model",
]


class RunStatus(StrEnum):
    """The status of a run."""

    ENQUEUING = "enqueuing"  # the client is still splitting and publishing
    RUNNING = "running"  # all input is enqueued, branches are being processed
    REDUCING = "reducing"  # all branches have ended, the outputs are being aggregated
    PAUSED = "paused"  # no new branches start until it is unpaused
    SUCCEEDED = "succeeded"  # the run met its policy; tolerated failures are recorded
    FAILED = "failed"  # the run did not meet its policy, or was stopped by an error
    CANCELLED = "cancelled"  # a user stopped the run; the outcomes so far are kept

    @property
    def has_ended(self) -> bool:
        """Whether it is final."""
        return self in TERMINAL


TERMINAL = frozenset({RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELLED})


class ErrorKind(StrEnum):
    """Why a branch has no output: a closed list."""

    RATE_LIMITED = "rate_limited"  # the provider asked to slow down
    TIMEOUT = "timeout"  # no complete answer within the deadline
    CONNECTION = "connection"  # the provider could not be reached
    SERVER_ERROR = "server_error"  # the provider failed (HTTP 5xx)
    CONTEXT_LENGTH = "context_length"  # prompt and answer do not fit the model's context window
    CONTENT_FILTER = "content_filter"  # the provider refused the content
    TRUNCATED = "truncated"  # the answer was cut at its limit of tokens
    INVALID_OUTPUT = "invalid_output"  # the answer is empty, or not in the requested format
    BAD_REQUEST = "bad_request"  # the document or the request cannot be used as it is
    AUTH = "auth"  # the provider refused the credentials
    BUDGET = "budget"  # the account or the run has no money left
    CANCELLED = "cancelled"  # the run was stopped before this branch was called
    TIME_LIMIT = "time_limit"  # the task exceeded its hard time limit
    WORKER_LOST = "worker_lost"  # the worker process died while it ran the branch
    POISONED = "poisoned"  # the branch was begun too often without an outcome: it kills its worker
    EXPIRED = "expired"  # the run's deadline passed before or during this call
    LOST = "lost"  # the branch's messages were lost too often
    INTERNAL = "internal"  # a fault in fanout or in the user's own function


class _Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The base of all records: immutable, keyword-only, without defaults in the JSON."""


class Document(_Record, frozen=True, kw_only=True):
    """One input item as the user gave it.

    Attributes:
        name: Its name for the user: a path, ``reviews.csv:17``, or ``item 3`` for a string.
        index: Its 0-based position in the input.
        text: The text; if ``error`` is set, it is empty or white space.
        columns: The other columns of a row, by name: JSON values.
        text_at: The position of the text among the columns of its row; None if it is no row.
        text_column: The name of the text's column, where it is not that of the job.
        pages: For each page, the offset of its first character in the text; empty if unknown.
        page_numbers: The pages, from 1 on, that the whole text is about, where these are not pages
            of the text itself: an answer about a part of a document.
        headings: Offsets in the text, each with the path of headings that holds from there on, such
            as ``Terms > Payment``.
        error: Why the document cannot be used, or None.
        number: Where it is one chunk of a larger input: the 0-based number of the chunk there.
        around: Where it is one chunk of a larger input: the texts before and after it there.
        parts: The parts that become its chunks, in place of those that the job's split gives.
        keeps_layout: Whether its first chunk gets its layout, so that it can be put together again.
    """

    name: str
    index: int
    text: str = ""
    columns: dict[str, Cell] = {}
    text_at: int | None = None
    text_column: str = ""
    pages: list[int] = []
    page_numbers: list[int] = []
    headings: list[tuple[int, str]] = []
    error: str | None = None
    number: int | None = None
    around: tuple[str, str] | None = None
    parts: list[Part] | None = None
    keeps_layout: bool = False


class Chunk(_Record, frozen=True, kw_only=True):
    """One piece of a document.

    Attributes:
        text: The text of the chunk.
        document: The document's name.
        document_index: The document's 0-based position in the input.
        position: The 0-based position of the chunk in its document.
        start: The offset of the chunk's first character in the document's text.
        end: The offset behind its last character.
        columns: The columns of the document's row: JSON values.
        text_at: The position of the text among the columns of the row; None if it is no row.
        text_column: The name of the text's column, where it is not that of the job.
        pages: The numbers of the pages that the chunk is on, from 1 on; empty if unknown.
        headings: The path of headings at the chunk's beginning, such as ``Terms > Payment``.
        error: Why the document cannot be used; its branches then fail without a call.
        number: What ``{index}`` is, where it is not the stage-wide index of the chunk.
        around: The texts before and after it, where these are not chunks of its shard.
        title: The title of the part, where a model has split the document; empty where it gave none.
        subtask: What to do, where a model has split the work on the document.
        layout: The pages and headings of the document, on the first chunk of one to be split further.
    """

    text: str
    document: str
    document_index: int
    position: int = 0
    start: int = 0
    end: int = 0
    columns: dict[str, Cell] = {}
    text_at: int | None = None
    text_column: str = ""
    pages: list[int] = []
    headings: str = ""
    error: str | None = None
    number: int | None = None
    around: tuple[str, str] | None = None
    title: str | None = None
    subtask: str = ""
    layout: Layout | None = None


class Shard(_Record, frozen=True, kw_only=True):
    """The input of one chord: up to 500 branches, and their chunks.

    Attributes:
        first: The stage-wide index of the shard's first branch.
        count: How many branches the shard has.
        first_chunk: The stage-wide index of ``chunks[0]``.
        chunks: The chunks of these branches, without repetition.
        before: The chunks before ``chunks[0]`` in its document, without columns: as many as the job
            has ``neighbours``.
        after: The same behind ``chunks[-1]``.
    """

    first: int
    count: int
    first_chunk: int
    chunks: list[Chunk]
    before: list[Chunk] = []
    after: list[Chunk] = []


class BranchRef(msgspec.Struct, frozen=True, kw_only=True):
    """The chunk, aspect, model and sample of a branch.

    Attributes:
        chunk: The stage-wide index of its chunk.
        aspect: The name of its prompt, or None if the run has a single prompt.
        model: The model that it asks; None if the branch decides that itself.
        sample: The 0-based number of the sample.
    """

    chunk: int
    aspect: str | None
    model: str | None
    sample: int


class Variants(msgspec.Struct, frozen=True, kw_only=True):
    """The branches of each chunk: aspects x models x samples; the sample varies fastest.

    Attributes:
        aspects: The names of the prompts; ``(None,)`` for a single one.
        models: The models that each prompt goes to.
        samples: The number of branches with the same prompt and model.
    """

    aspects: tuple[str | None, ...] = (None,)
    models: tuple[str | None, ...] = (None,)
    samples: int = 1

    @property
    def count(self) -> int:
        """The branches of each chunk."""
        return len(self.aspects) * len(self.models) * self.samples

    def ref(self, index: int) -> BranchRef:
        """Return chunk, aspect, model and sample of the branch ``index``."""
        rest, sample = divmod(index, self.samples)
        rest, model = divmod(rest, len(self.models))
        chunk, aspect = divmod(rest, len(self.aspects))
        return BranchRef(
            chunk=chunk, aspect=self.aspects[aspect], model=self.models[model], sample=sample
        )


class StepOutcome(_Record, frozen=True, kw_only=True):
    """How a step of a branch ended: an answer, or an error with its kind.

    Attributes:
        name: The name of the step.
        output: Its answer; JSON where it has a schema. None if it failed.
        round: The number of its answer, from 1: it is asked again where a judge does not pass it.
        is_json: Whether the answer is JSON, by its schema, or as a function returned it.
        passages: The passages that were found for its prompt, best first.

    The other fields are those of Outcome.
    """

    name: str
    output: str | None = None
    round: int = 1
    kind: ErrorKind | None = None
    message: str | None = None
    attempts: int = 0
    usage: Usage = NO_CALL
    elapsed_s: float = 0.0
    model: str | None = None
    finish_reason: str | None = None
    lane: Lane | None = None
    is_cut: bool = False
    confidence: float | None = None
    saved: Usage = NO_CALL
    is_json: bool = False
    passages: tuple[PassageUse, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()


class Outcome(_Record, frozen=True, kw_only=True):
    """How a branch ended: an output, or an error with its kind.

    Attributes:
        index: The stage-wide index of the branch.
        output: The model's answer, or None if the branch failed.
        kind: Why it failed, or None.
        message: The error message; it may quote the provider, never a key.
        attempts: Calls made for the branch; 0 if none was made.
        usage: The usage of these calls.
        elapsed_s: Seconds from the first call to the end, waits included.
        ended_at: Seconds since the epoch, by the clock of the process that recorded the outcome;
            0 if unknown.
        model: The model that answered, where it is not the one that the branch asks first.
        finish_reason: Why the last answer ended, in the provider's words; None if it did not say.
        lane: How the answer was bought, of a failed branch ``batch`` if a batch had its last call; None
            for realtime where no other lane was asked for, and in all other cases.
        is_cut: Whether the output was cut off at a limit of tokens, and kept.
        confidence: The probability of the chosen label by the model, 0 to 1; None if unknown.
        votes: How often each answer was given, if the branch asked until one had a majority.
        samples: How many answers it asked for until then; 0 if it does not vote.
        usage_of: The usage by model, if the branch called several.
        saved: What the answers had cost that were kept from earlier calls, and were taken without
            a call: ``calls`` is the number of these answers.
        steps: The steps of the branch in the order in which they ran, a failed one last.
        is_rejected: Whether a judge did not pass the output.
        passages: The passages that were found for the prompt, best first.
        refused: Of a branch that failed: the answers that were invalid, cut where they are long, each with
            what the model was told of it; that is empty where it was not asked again.
    """

    index: int
    output: str | None = None
    kind: ErrorKind | None = None
    message: str | None = None
    attempts: int = 0
    usage: Usage = NO_CALL
    elapsed_s: float = 0.0
    ended_at: float = 0.0
    model: str | None = None
    finish_reason: str | None = None
    lane: Lane | None = None
    is_cut: bool = False
    confidence: float | None = None
    votes: dict[str, int] = {}
    samples: int = 0
    usage_of: dict[str, Usage] = {}
    saved: Usage = NO_CALL
    steps: tuple[StepOutcome, ...] = ()
    is_rejected: bool = False
    passages: tuple[PassageUse, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()

    @property
    def has_latency(self) -> bool:
        """Whether ``elapsed_s`` is the time of calls: that of a batch is no call's."""
        return self.attempts > 0 and self.lane != "batch"

    @property
    def is_cached(self) -> bool:
        """Whether an answer was taken from the cache."""
        return self.saved.calls > 0

    @property
    def ok(self) -> bool:
        """Whether there is an output."""
        return self.kind is None
