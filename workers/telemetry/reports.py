"""Reports branches, shards and runs that have ended, in the log and as traces.

Reports have no texts, prompts, answers or messages of errors, which may quote them. Traces are off
unless FANOUT_TRACES asks for them; only then is OpenTelemetry imported.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from threading import Lock
from typing import TYPE_CHECKING

from fanout.core.errors import FanoutError
from fanout.core.ids import StageId
from fanout.core.records import RunStatus, total_usage
from fanout.core.units import cost_of, count_of
from fanout.llm.usage import billed
from fanout.policy.answers_so_far import AnswersSoFar
from fanout.system.logs import RateLimitFilter, about

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Callable, Collection, Mapping

    from fanout.core.ids import BranchId, ShardId
    from fanout.core.records import Outcome, Usage
    from fanout.core.settings import Settings
    from fanout.core.state import RunRecord, StageRecord
    from fanout.llm.base import LLMRequest
    from fanout.llm.calls import CallAttempt
    from fanout.stores import RedisStore

__all__ = ["Calls", "Reports", "Telemetry", "make_telemetry"]

# Seconds between two log lines for the same kind of failure of a run.
_FAILURES_S = 60.0
_MAX_REMEMBERED = 1_000
_NO_ANSWERS = AnswersSoFar()

_log = logging.getLogger(__name__)
# Lost spans do no harm to branches.
_spans_log = logging.getLogger(f"{__name__}.spans")
_spans_log.addFilter(RateLimitFilter(_FAILURES_S))


class Calls:
    """The calls of one delivery of a branch: their requests and results, without any text.

    Attributes:
        started_at: When the delivery began; seconds since the epoch.
        model: The model string of the last one; empty if there was no call.
        temperature: The requested temperature, or None.
        max_tokens: The requested limit, or None.
        seed: The requested seed, or None.
        attempts: The calls that have ended.
        models: The model of each of these.
        is_by_model: Whether the run calls several models.
        stop_after: Number of equal failures of branches that stop the run; 0: no number does.
        is_out_of_time: Whether the last question failed for want of time alone.
        earlier: The answers that earlier deliveries have asked for, with all their calls.
        so_far: These, and the answers of this delivery to questions that are done.
        is_batched: Whether the last call is one of a batch.
        step: What names the answer that the branch asks for among those of its steps; empty for none.
        settling: Each ends when an answer of this delivery is kept for others.
    """

    def __init__(self, started_at: float) -> None:
        self.started_at = started_at
        self.model = ""
        self.temperature: float | None = None
        self.max_tokens: int | None = None
        self.seed: int | None = None
        self.attempts: list[CallAttempt] = []
        self.models: list[str] = []
        self.is_by_model = False
        self.stop_after = 0
        self.is_out_of_time = False
        self.is_batched = False
        self.step = ""
        self.earlier = self.so_far = _NO_ANSWERS
        self.settling: list[Future[bool]] = []

    def asks(self, model: str, request: LLMRequest) -> None:
        """Record a request, without its prompt."""
        self.model = model
        self.temperature = request.temperature
        self.max_tokens = request.max_tokens
        self.seed = request.seed

    @property
    def usage_of(self) -> dict[str, Usage]:
        """The usage of the calls by model, if they were to several."""
        earlier = self.earlier.usage_of
        if len({*self.models, *earlier}) < 2:  # noqa: PLR2004 - several
            return {}
        used = {model: [usage] for model, usage in earlier.items()}
        for model, call in zip(self.models, self.attempts, strict=True):
            used.setdefault(model, []).append(billed(call.kind, call.usage))
        return {model: total_usage(usages) for model, usages in used.items()}

    def ended(self, model: str, attempt: CallAttempt) -> None:
        """Record a call that has ended."""
        self.models.append(model)
        self.attempts.append(attempt)


class Telemetry:
    """Receives reports of what has ended; this class ignores them.

    A subclass may raise any error: the caller logs it and goes on.
    """

    def branch(self, branch_id: BranchId, outcome: Outcome, calls: Calls) -> None:
        """Report a branch whose outcome was the first."""

    def shard(self, shard_id: ShardId, outcomes: Collection[Outcome]) -> None:
        """Report a shard that has just been collected."""

    def run(self, run: RunRecord, stages: list[StageRecord]) -> None:
        """Report a run that has ended."""

    def close(self) -> None:
        """Send pending reports, for a few seconds at most."""


def make_telemetry(settings: Settings, find_run: Callable[[str], RunRecord]) -> Telemetry:
    """Return the telemetry that the settings and OpenTelemetry's OTEL_SDK_DISABLED ask for.

    Args:
        settings: Whether there are traces, and of which share of the branches.
        find_run: Returns the state of a run.
    """
    is_disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if settings.traces == "off" or is_disabled:
        return Telemetry()
    from workers.telemetry.spans import Tracing

    return Tracing(find_run, branch_ratio=settings.traces_branch_ratio)


class Reports:
    """Reports the work of a worker process.

    Args:
        store: Has the results of runs.
        telemetry: Receives the reports as well as the log.
    """

    def __init__(self, store: RedisStore, telemetry: Telemetry) -> None:
        self._store = store
        self._telemetry = telemetry
        self._failures = _Failures()

    def branch_ended(self, branch_id: BranchId, outcome: Outcome, calls: Calls) -> None:
        """Report that a branch has its outcome; called by the process that wrote it."""
        if outcome.kind is not None:
            count = self._failures.due(branch_id.run_id, outcome.kind.value)
            if count:
                more = f", {count - 1} more since the last such line" if count > 1 else ""
                _log.warning("failed: %s%s", outcome.kind.value, more, extra=about(branch_id))
        _tolerate(lambda: self._telemetry.branch(branch_id, outcome, calls))

    def shard_ended(self, shard_id: ShardId, outcomes: Mapping[int, Outcome]) -> None:
        """Report that a shard was collected."""
        kinds = Counter(outcome.kind.value for outcome in outcomes.values() if outcome.kind)
        starts = [o.ended_at - o.elapsed_s for o in outcomes.values() if o.ended_at]
        _log.info(
            "run %s, shard %d of stage %d: %s, %.1f s",
            shard_id.run_id,
            shard_id.shard,
            shard_id.stage,
            _counts(len(outcomes), kinds),
            time.time() - min(starts, default=time.time()),
            extra=about(shard_id),
        )
        _tolerate(lambda: self._telemetry.shard(shard_id, outcomes.values()))

    def run_ended(self, run_id: str) -> None:
        """Report the end of a run; called by the process that ended it."""
        try:
            run = self._store.run(run_id)
            stages = [
                self._store.stage(StageId(run_id, stage)) for stage in range(run.last_stage + 1)
            ]
        except FanoutError as error:
            _log.warning("run %s has ended: %s", run_id, error, extra=about(run_id))
            return
        kinds = {kind.value: count for kind, count in stages[0].errors.items()}
        level = logging.WARNING if run.status is RunStatus.FAILED else logging.INFO
        _log.log(
            level,
            "run %s %s: %s, %s, %.1f s",
            run_id,
            run.status.value,
            _counts(stages[0].done, kinds),
            _usage(stages),
            (run.ended_at or run.read_at) - (run.reopened_at or run.created_at),
            extra=about(run_id),
        )
        _tolerate(lambda: self._telemetry.run(run, stages))

    def close(self) -> None:
        """Send pending reports, for a few seconds at most."""
        _tolerate(self._telemetry.close)


class _Failures:
    """Counts failures by run and kind, and limits their log lines."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def due(self, run_id: str, kind: str) -> int:
        """Count a failure; return the number since the last line if a line is due, else 0."""
        now = time.monotonic()
        with self._lock:
            due_at, count = self._seen.get((run_id, kind), (now, 0))
            count += 1
            if now < due_at:
                self._seen[run_id, kind] = (due_at, count)
                return 0
            if len(self._seen) >= _MAX_REMEMBERED:
                self._seen.clear()
            self._seen[run_id, kind] = (now + _FAILURES_S, 0)
            return count


def _counts(total: int, kinds: Mapping[str, int]) -> str:
    failed = sum(kinds.values())
    words = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()) if count)
    return f"{total} branches, {total - failed} succeeded, {failed} failed" + (
        f" ({words})" if words else ""
    )


def _usage(stages: list[StageRecord]) -> str:
    usage = total_usage([stage.usage for stage in stages if stage.done])
    parts = [f"{usage.calls} calls"]
    if usage.known("input_tokens") or usage.input_tokens is not None:
        into, out = (count_of(usage, name) for name in ("input_tokens", "output_tokens"))
        parts += [f"{into} tokens in", f"{out} out"]
    if usage.known("cost_usd"):
        parts.append(cost_of(usage))
    return ", ".join(parts)


def _tolerate(report: Callable[[], None]) -> None:
    """Report work that is done: an error of the report must not undo it."""
    try:
        report()
    except Exception as error:  # noqa: BLE001 - an exporter may raise anything
        _spans_log.warning("a span could not be written: %s", type(error).__name__)
