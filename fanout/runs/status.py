"""The records of a run's progress, and of its aggregate as it is stored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import structs

from fanout.aggregators import Aggregate, Coverage  # noqa: TC001 - msgspec reads the annotation
from fanout.core.gathered import RunBatch  # noqa: TC001 - part of the public record
from fanout.core.lanes import LaneChoice  # noqa: TC001 - part of the public record
from fanout.core.latency import Latency
from fanout.core.rate_limits import LimitState  # noqa: TC001 - part of a public record
from fanout.core.records import NO_CALL, ErrorKind, RunStatus, Usage
from fanout.core.units import plural
from fanout.runs.budget_status import BudgetStatus  # noqa: TC001 - part of a public record
from fanout.runs.savings import Savings, saved_row

__all__ = [
    "NONE_MADE",
    "ReduceError",
    "StageStatus",
    "Status",
    "StoredResult",
    "coverage_notes",
    "coverage_value",
    "failed_call_parts",
    "kept_notes",
    "latency_row",
    "retry_help",
    "without_aggregate",
]

# How the error of a run begins that has no aggregate.
NONE_MADE = "no aggregate could be made: "


class ReduceError(msgspec.Struct, frozen=True, kw_only=True):
    """A call of an LLM aggregate that failed.

    Attributes:
        group: The group of the aggregate; empty if the run has no groups.
        reduce: The name of the reduce; empty if the run has only one.
        kind: Why it failed.
        message: One line about the failure.
        attempts: Calls made for it.
    """

    group: str
    kind: ErrorKind
    message: str
    attempts: int
    reduce: str = ""


class StoredResult(msgspec.Struct, frozen=True, kw_only=True):
    """The stored result of a reduce: see also ``fanout.runs.result_values``.

    That of a run with a list of reduces has a result for each.

    Attributes:
        aggregates: By group; the only group of a reduce without groups is the empty string.
        errors: The calls of an LLM aggregate that failed.
        writer: Whose pieces have the values that are not here; empty if there are none.
        piece_bytes: The size of a piece; the last one may be smaller.
        entries: Where in these pieces the aggregates are, as lines of JSON, if they are too many for the
            record: the first byte, and the one behind the last. None if they are in ``aggregates``.
        error_lines: Where the errors are, in the same way, if they are too many for the record.
        problem: Why there is no aggregate, or None.
        named: The results of the reduces of a list, by name, in the order of the list, without their own
            ``writer``.
        problems: Why the run ends as failed, by the name of the reduce: another process may end it.
    """

    aggregates: dict[str, Aggregate] = {}
    errors: list[ReduceError] = []
    writer: str = ""
    piece_bytes: int = 0
    entries: tuple[int, int] | None = None
    error_lines: tuple[int, int] | None = None
    problem: str | None = None
    named: dict[str, StoredResult] = {}
    problems: dict[str, str] = {}

    @property
    def all_errors(self) -> list[ReduceError]:
        """The failed calls of all reduces."""
        return [error for one in (self, *self.named.values()) for error in one.errors]


class StageStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The progress of a stage of a run.

    Attributes:
        stage: 0 is the branches, others are the reduce.
        total: Branches known so far.
        succeeded: Branches with an output.
        failed: Branches with an error.
        done: Branches that have ended.
        kept_truncated: Branches with an output that was cut off at its limit of tokens.
        calls: Calls that were made, those before a retry included.
    """

    stage: int
    total: int
    succeeded: int
    failed: int
    done: int
    kept_truncated: int = 0
    calls: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Status(Savings):
    """The status of a run.

    Attributes:
        run_id: The run's id.
        status: Its status.
        total: Branches known so far; final once the status is past ``enqueuing``.
        done: Branches that have ended.
        succeeded: Branches with an output.
        failed: Branches with an error.
        kept_truncated: Branches with an output that was cut off at its limit of tokens.
        kept_rejected: Branches with an output that a judge did not pass in its last round.
        asks_once: Whether each branch asks one question: not with ``steps`` or ``certainty``. True if the
            job cannot be read.
        errors: Failed branches by kind.
        usage: The usage of all calls; an unknown quantity is None.
        usage_by_model: The usage by model, if the run calls several; else empty.
        saved: What the answers had cost that came from the cache; ``calls`` is their number.
        created_at: Seconds since the epoch.
        elapsed_s: Seconds from submission to now, or to the end, without those before a retry in which
            it had ended.
        stage: The stage in progress; 0 is the branches, others are the reduce.
        error: Why the run failed, or None.
        workers: Live workers.
        latency: The durations of the branches that made a call.
        stages: The branches, then the stages of the current reduce.
        max_workers: The most branches in flight in the whole fleet; None is no cap.
        permits_used: How many of these the workers have now: about its branches in flight. None
            without ``max_workers``.
        priority: The run's share of busy workers.
        gathered: Branches that wait for a call of a provider's batch.
        batches: The batches with calls of the run, as they were a few seconds ago.
        budget: What is left of the run's budget; None without one.
        lane: How its calls are bought: see RunSpec. None if the job cannot be read.
        is_late: Whether some of its calls could not wait for a batch, because of its deadline: they are
            made at the list price.
        is_stopping: Whether it was stopped, or its deadline has passed, and it has not ended yet.
        day_budgets: What is left of the budgets of the day that its calls must fit into, by models;
            none once it has ended.
        plan: Of a job with ``split: model``, the texts that a model is to split; None of others. Its
            usage is part of ``usage``.
        limits: The limits that the fleet has learnt of its models and keeps to now; none once it has
            ended.
        asks_providers: Whether it calls models of providers, which cost something.
        vanished: The workers of the fleet that have died, or were cut off, since the run was submitted
            (in the last hour), with the branches that they had in hand, of any run, which others
            take over. Empty once the run has ended.
        notice: What to know of it before it has ended: a field that no answer of its first shard has;
            None if there is nothing.
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
    max_workers: int | None = None
    permits_used: int | None = None
    priority: float = 1.0
    gathered: int = 0
    batches: tuple[RunBatch, ...] = ()
    kept_truncated: int = 0
    kept_rejected: int = 0
    asks_once: bool = True
    usage_by_model: dict[str, Usage] = field(default_factory=dict)
    budget: BudgetStatus | None = None
    saved: Usage = NO_CALL
    lane: LaneChoice | None = None
    is_late: bool = False
    is_stopping: bool = False
    day_budgets: dict[str, BudgetStatus] = field(default_factory=dict)
    limits: dict[str, LimitState] = field(default_factory=dict)
    asks_providers: bool = False
    plan: StageStatus | None = None
    vanished: dict[str, int] = field(default_factory=dict)
    notice: str | None = None

    @property
    def failed_calls(self) -> int:
        """How many calls of the current reduce have failed, or were left out."""
        return sum(one.failed for one in self.stages if one.stage > 0)

    @property
    def slowed(self) -> list[str]:
        """The models whose calls wait for limits that were learnt."""
        return sorted(name for name, one in self.limits.items() if one.is_waited_for)

    @property
    def used_up(self) -> list[str]:
        """The budgets of the day for whose next day its calls wait, by models."""
        return sorted(name for name, one in self.day_budgets.items() if one.is_used_up)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values, as ``fanout status --json`` prints them."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        fields["elapsed_s"] = round(self.elapsed_s, 3)
        return {
            **fields,
            "status": self.status.value,
            "errors": {kind.value: count for kind, count in sorted(self.errors.items())},
            "usage": self.usage.to_dict(),
            "usage_by_model": {name: one.to_dict() for name, one in self.usage_by_model.items()},
            **saved_row(self.saved),
            "latency": latency_row(self.latency),
            "stages": msgspec.to_builtins(self.stages),
            "plan": msgspec.to_builtins(self.plan),
            "batches": [structs.asdict(batch) for batch in self.batches],
            "budget": None if self.budget is None else self.budget.to_dict(),
            "day_budgets": {name: one.day_dict() for name, one in self.day_budgets.items()},
            "limits": {name: one.to_dict() for name, one in self.limits.items()},
        }


def kept_notes(status: Status) -> list[str]:
    """Return what to say of answers that were kept: cut off, or not passed by a judge."""
    reduced = sum(one.kept_truncated for one in status.stages if one.stage > 0)
    counted = {
        ("answer", "answers"): status.kept_truncated,
        ("answer of the reduce", "answers of the reduce"): reduced,
    }
    notes = [
        f"{plural(count, *names)} {'was' if count == 1 else 'were'} cut off and kept"
        for names, count in counted.items()
        if count
    ]
    if rejected := status.kept_rejected:
        answers = plural(rejected, "answer", "answers")
        was = "was" if rejected == 1 else "were"
        notes.append(f"{answers} {was} rejected by a judge and kept")
    return notes


def failed_call_parts(status: Status) -> list[str]:
    """Return how many calls of the reduce have failed, in words; nothing if none has.

    Those that were not made count, as of groups with too little behind them, or beyond the budget.
    """
    count = status.failed_calls
    return [f"{plural(count, 'call', 'calls')} of the reduce failed or left out"] if count else []


def coverage_notes(aggregate: Aggregate, reduction: str) -> list[str]:
    """Return what to say of an aggregate that not all its branches are behind.

    Those that no call is made for name what they leave out themselves.
    """
    coverage = aggregate.coverage
    if coverage is None:
        return []
    if coverage.problem is not None:
        return [f"no aggregate: {coverage.problem}"]
    return [] if coverage.is_whole or reduction != "llm" else [f"behind it: {coverage.words}"]


def coverage_value(coverage: Coverage | dict[str, Any] | None) -> dict[str, Any] | None:
    """Return what is behind an aggregate, or that of each reduce or group, as JSON-able values."""
    if isinstance(coverage, dict):
        return {name: coverage_value(one) for name, one in coverage.items()}
    return None if coverage is None else coverage.to_dict()


def retry_help(status: Status) -> str:
    """Return which command helps with the failed branches of a run that has ended.

    A retry does not help those that cannot be used as they are, such as a document that could not be
    read.
    """
    over = status.errors.get(ErrorKind.BUDGET, 0)
    if status.budget is not None and over and over == status.failed:
        which = "them" if over > 1 else "it"
        option = f"--budget-{status.budget.fullest}"
        return f"`fanout retry {status.run_id} {option} N` goes on with {which} and a larger budget"
    again = status.failed - status.errors.get(ErrorKind.BAD_REQUEST, 0)
    if again <= 0:
        return f"`fanout errors {status.run_id}` says why, and a retry does not help"
    which = f"{again:,} of them" if again < status.failed else "them" if again > 1 else "it"
    return f"`fanout retry {status.run_id}` processes {which} again"


def latency_row(latency: Latency) -> dict[str, float | None]:
    """Return mean and percentiles in seconds, as JSON-able values; None without a duration."""
    shares = {"p50_s": 0.5, "p90_s": 0.9, "p99_s": 0.99}
    row = {"mean_s": latency.mean_s, **{n: latency.percentile_s(s) for n, s in shares.items()}}
    return {name: None if value is None else round(value, 4) for name, value in row.items()}


def without_aggregate(problem: str | None) -> str:
    """Return what stands in the place of an aggregate that there is not."""
    why = (problem or "there is none").removeprefix(NONE_MADE)
    return f"(no aggregate: {why})"
