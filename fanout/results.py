"""What a caller gets of a run: its status, its result, and the aggregate as it is stored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from fanout.aggregators import Aggregate  # noqa: TC001 - msgspec reads the annotation
from fanout.latency import Latency
from fanout.runs import ErrorKind, RunStatus, Usage

__all__ = [
    "BranchError",
    "Output",
    "ReduceError",
    "Result",
    "StageStatus",
    "Status",
    "StoredResult",
    "branch_error",
    "latency_row",
]


class ReduceError(msgspec.Struct, frozen=True, kw_only=True):
    """A call of an LLM aggregate that failed.

    Attributes:
        group: The group whose aggregate it was part of; empty where the run has no groups.
        kind: Why it failed.
        message: The failure in words.
        attempts: Calls made for it.
    """

    group: str
    kind: ErrorKind
    message: str
    attempts: int


class StoredResult(msgspec.Struct, frozen=True, kw_only=True):
    """The aggregate of a run as the store keeps it.

    Attributes:
        aggregates: By group; the only group of a run without groups is the empty string.
        errors: The calls of an LLM aggregate that failed.
    """

    aggregates: dict[str, Aggregate] = {}
    errors: list[ReduceError] = []


class StageStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How far a stage of a run is.

    Attributes:
        stage: 0 is the branches, others are the reduce.
        total: Branches known so far.
        succeeded: Branches with an output.
        failed: Branches with an error.
        done: Branches that have ended.
    """

    stage: int
    total: int
    succeeded: int
    failed: int
    done: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """Where a run is.

    Attributes:
        run_id: The run's name.
        status: One of the words of RunStatus.
        total: Branches known so far; final once the status is past ``enqueuing``.
        done: Branches that have ended.
        succeeded: Branches with an output.
        failed: Branches with an error.
        errors: Failed branches by kind.
        usage: What all calls consumed; an unknown is None.
        created_at: Seconds since the epoch.
        elapsed_s: Seconds from submission to now, or to the end.
        stage: The stage in progress; 0 is the branches, others are the reduce.
        error: Why the run failed, or None.
        workers: Live workers.
        latency: How long the branches took that made a call.
        stages: The branches, then the stages of the present reduce.
    """

    run_id: str
    status: RunStatus
    total: int
    done: int
    succeeded: int
    failed: int
    errors: dict[ErrorKind, int]
    usage: Usage
    created_at: float
    elapsed_s: float
    stage: int
    error: str | None
    workers: int
    latency: Latency = field(default_factory=Latency)
    stages: tuple[StageStatus, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values: what ``fanout status --json`` prints."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        fields["elapsed_s"] = round(self.elapsed_s, 3)
        return {
            **fields,
            "status": self.status.value,
            "errors": {kind.value: count for kind, count in sorted(self.errors.items())},
            "usage": self.usage.to_dict(),
            "latency": latency_row(self.latency),
            "stages": msgspec.to_builtins(self.stages),
        }


def latency_row(latency: Latency) -> dict[str, float | None]:
    """Return mean and percentiles in seconds, as JSON-able values; None where there is nothing."""
    shares = {"p50_s": 0.5, "p90_s": 0.9, "p99_s": 0.99}
    row = {"mean_s": latency.mean_s, **{n: latency.percentile_s(s) for n, s in shares.items()}}
    return {name: None if value is None else round(value, 4) for name, value in row.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """One branch of a run, failed or not: what it stands for, and what it gave.

    Attributes:
        index: Its position in ``Result.outputs``.
        document: The document's name.
        document_index: The document's 0-based position in the input.
        chunk: The index of its chunk in the run.
        position: The 0-based position of the chunk in its document.
        start: The offset in the document of the chunk's first character.
        end: The offset behind its last character.
        aspect: The name of its prompt, or None where the run has a single prompt.
        sample: 0-based number of the sample.
        output: The answer, or None where the branch failed.
        kind: Why it failed, or None.
        message: The failure in words, or None.
        attempts: Calls made for it.
        usage: What they consumed.
        elapsed_s: Seconds from the first call to the end, waits included.
        ended_at: When it ended, in seconds since the epoch; 0 where unknown.
        columns: The other columns of the document's row.
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
    output: str | None
    kind: ErrorKind | None
    message: str | None
    attempts: int
    usage: Usage
    elapsed_s: float
    ended_at: float = 0.0
    columns: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class BranchError:
    """One failed branch.

    Attributes:
        index: The position in ``Result.outputs`` that is None.
        document: The document's name.
        kind: Why it failed.
        message: The failure in words.
        attempts: Calls made for it.
        aspect: The name of its prompt, or None.
        sample: 0-based number of the sample.
    """

    index: int
    document: str
    kind: ErrorKind
    message: str
    attempts: int
    aspect: str | None = None
    sample: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What a run gave.

    Attributes:
        run_id: The run's name.
        status: How it ended.
        branches: Every branch in input order: chunks x aspects x samples, samples fastest.
        aggregated: The aggregate; by group where the run has groups; None where there is none.
        notes: What the aggregator wants known, such as a tie or answers that it left out.
        reduce_errors: The calls of an LLM aggregate that failed.
        usage: What all calls consumed; an unknown is None.
        error: Why the run failed, or None.
        elapsed_s: Seconds from submission to the end.
    """

    run_id: str
    status: RunStatus
    branches: list[Output]
    aggregated: Any
    notes: list[str]
    reduce_errors: list[ReduceError]
    usage: Usage
    error: str | None
    elapsed_s: float

    @property
    def outputs(self) -> list[str | None]:
        """One entry for each branch, in input order; None where it failed."""
        return [branch.output for branch in self.branches]

    @property
    def errors(self) -> list[BranchError]:
        """One record for each failed branch, in input order."""
        return [branch_error(branch) for branch in self.branches if branch.kind is not None]

    @property
    def coverage(self) -> float:
        """The share of branches that succeeded, 0 to 1; 0 where there are none."""
        total = len(self.branches)
        return sum(branch.kind is None for branch in self.branches) / total if total else 0.0


def branch_error(branch: Output) -> BranchError:
    """Return the error record of a failed branch."""
    return BranchError(
        index=branch.index,
        document=branch.document,
        kind=branch.kind or ErrorKind.INTERNAL,
        message=branch.message or "",
        attempts=branch.attempts,
        aspect=branch.aspect,
        sample=branch.sample,
    )
