"""What a worker says of branches, shards and runs that have ended: in its log, and as traces.

Nothing here holds texts, prompts, answers or the words of an error, which may quote them.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from threading import Lock
from typing import TYPE_CHECKING

from fanout.core.errors import FanoutError
from fanout.core.ids import StageId
from fanout.core.records import RunStatus
from fanout.system.logs import RateLimitFilter, about

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fanout.core.ids import BranchId, ShardId
    from fanout.core.records import Outcome
    from fanout.stores import RedisStore, StageRecord
    from workers.telemetry.base import Calls, Telemetry

__all__ = ["Reports"]

# Where all branches fail, one line in this time says so.
_FAILURES_S = 60.0
_MAX_REMEMBERED = 1_000

_log = logging.getLogger(__name__)
# Spans that are lost cost nobody a branch.
_spans_log = logging.getLogger(f"{__name__}.spans")
_spans_log.addFilter(RateLimitFilter(_FAILURES_S))


class Reports:
    """What a worker process says.

    Args:
        store: Where it looks up what a run came to.
        telemetry: Who is told, besides the log.
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
        _bear(lambda: self._telemetry.branch(branch_id, outcome, calls))

    def shard_ended(self, shard_id: ShardId, outcomes: Mapping[int, Outcome]) -> None:
        """Say that a shard was collected."""
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
        _bear(lambda: self._telemetry.shard(shard_id, outcomes.values()))

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
        _bear(lambda: self._telemetry.run(run, stages))

    def close(self) -> None:
        """Send what was not sent yet; for a few seconds at most."""
        _bear(self._telemetry.close)


class _Failures:
    """Counts failures by run and kind, and says when it is time for a line."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def due(self, run_id: str, kind: str) -> int:
        """Count one; return how many there were since the last line if one is due, else 0."""
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
    used = [stage.usage for stage in stages if stage.done]
    calls = sum(usage.calls for usage in used)
    tokens = [(usage.input_tokens, usage.output_tokens) for usage in used]
    if not tokens or any(None in pair for pair in tokens):
        return f"{calls} calls"
    into, out = (sum(n or 0 for n in side) for side in zip(*tokens, strict=True))
    return f"{calls} calls, {into} tokens in, {out} out"


def _bear(tell: Callable[[], None]) -> None:
    """Tell of something that is done already: no fault of the telling may undo it."""
    try:
        tell()
    except Exception as error:  # noqa: BLE001 - an exporter may raise anything
        _spans_log.warning("a span could not be written: %s", type(error).__name__)
