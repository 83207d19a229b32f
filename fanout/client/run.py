"""``Run``: a handle to follow and steer a run, and to read its result."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.broker.fleet_version import check_as_client
from fanout.client.loop_threads import finished, in_thread
from fanout.client.polls import pauses, polls
from fanout.client.stream import EndedBranches
from fanout.core.answer_types import UNTYPED
from fanout.core.errors import BrokerError, WaitTimeoutError
from fanout.core.ids import StageId
from fanout.core.records import RunStatus, total_usage, usage_by_model
from fanout.core.spec import RunSpec, stored_spec
from fanout.observe.probe import write_refusal
from fanout.runs.common_errors import commonest_error
from fanout.runs.enqueue import close_input, delete, retry_failed, unpark
from fanout.runs.evaluation import evaluate, evaluate_by
from fanout.runs.outputs import output_of, typed_value
from fanout.runs.results import Output, Result
from fanout.runs.rows import layout_of
from fanout.runs.status import StageStatus, Status, StoredResult, truncation_notes

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping

    from fanout.broker.publisher import Publisher
    from fanout.core.answer_types import AnswerTypes
    from fanout.core.rate_limits import LimitState
    from fanout.core.records import ErrorKind, Outcome, Shard
    from fanout.runs.evaluation import Evaluation
    from fanout.stores import RedisStore

__all__ = ["AWAY_S", "Run"]

# A server that restarts, or whose replica takes over, answers again well within two minutes.
AWAY_S = 120.0

# Between two looks at what has ended: less often than the progress, as it costs more.
_FIRST_STREAM_POLL_S = 0.01
_STREAM_POLL_S = 0.25
_LOOKED_AT_SHARDS = 100
# Seconds from one report of the progress to the next.
_SHOW_S = 0.1
# Branches that are read from the server in one go, and given one by one.
_PART_OUTPUTS = 100
# Calls in flight of a cancelled run end within a second or so, if there are workers.
_END_S = 10.0


class Run:
    """The handle of a run; any process with the broker's URL can make one.

    Methods that change a run raise WireVersionError if its fleet has another version of fanout.

    Attributes:
        run_id: The run's name.
    """

    def __init__(
        self,
        run_id: str,
        store: RedisStore,
        publisher: Publisher,
        check: Callable[[], None],
        types: AnswerTypes = UNTYPED,
    ) -> None:
        self.run_id = run_id
        self._map_id = StageId(run_id, 0)
        self._store = store
        self._publisher = publisher
        self._check = check
        self._types = types

    def typed(self, types: AnswerTypes) -> Run:
        """Return a handle of the run whose answers are instances of these types."""
        return Run(self.run_id, self._store, self._publisher, self._check, types)

    def __repr__(self) -> str:
        return f"Run({self.run_id!r})"

    @property
    def spec(self) -> RunSpec:
        """The job of the run."""
        return stored_spec(self._store.spec(self.run_id))

    def status(self) -> Status:
        """Return the progress of the run. Raises UnknownRunError."""
        run = self._store.run(self.run_id)
        stages = [
            self._store.stage(StageId(self.run_id, stage)) for stage in range(run.last_stage + 1)
        ]
        usage = total_usage([stage.usage for stage in stages if stage.done])
        if run.retry and not run.has_ended and run.halt is None:
            stages[0] = stages[0].without_retried(run.retry)
        branches = stages[0]
        return Status(
            run_id=self.run_id,
            status=run.status,
            total=branches.total,
            done=branches.done,
            succeeded=branches.succeeded,
            failed=branches.failed,
            errors=branches.errors,
            usage=usage,
            created_at=run.created_at,
            elapsed_s=run.elapsed_s,
            stage=run.stage,
            error=run.error,
            workers=len(self._store.workers()),
            latency=branches.latency,
            stages=tuple(
                StageStatus(
                    stage=number,
                    total=record.total,
                    succeeded=record.succeeded,
                    failed=record.failed,
                    done=record.done,
                    kept_truncated=record.kept_truncated,
                )
                for number, record in enumerate(stages)
                # Without the reduce stages that a retry discarded.
                if number == 0 or number > run.base_stage
            ),
            max_workers=run.max_workers,
            permits_used=None if run.max_workers is None else run.permits_in_use,
            priority=run.priority,
            kept_truncated=branches.kept_truncated,
            usage_by_model=usage_by_model([stage.usage_of for stage in stages]),
        )

    def wait(
        self,
        timeout_s: float | None = None,
        *,
        on_progress: Callable[[Status], None] | None = None,
        on_away: Callable[[BrokerError], None] | None = None,
    ) -> Status:
        """Wait until the run has ended, and return its status.

        It tolerates an unreachable server for two minutes.

        Args:
            timeout_s: Seconds to wait at most; None is no limit.
            on_progress: Called with the status several times a second.
            on_away: Called instead of ``on_progress`` while the server does not answer.

        Raises:
            WaitTimeoutError: The run has not ended; it goes on.
            BrokerError: The server was unreachable for too long, or refuses; the run goes on.
            EmbeddedError: The embedded fleet has stopped.
        """
        look = self._looks(on_progress, on_away)
        for _ in polls(None if timeout_s is None else time.monotonic() + timeout_s):
            status = look()
            if status is not None:
                return status
        raise self._late(timeout_s)

    async def await_(
        self,
        timeout_s: float | None = None,
        *,
        on_progress: Callable[[Status], None] | None = None,
    ) -> Status:
        """Wait as ``wait`` does, without blocking the event loop, which calls ``on_progress``.

        A task that is cancelled stops waiting; the run goes on.

        Raises:
            WaitTimeoutError, BrokerError, EmbeddedError: As ``wait`` does.
        """
        seen: list[Status] = []
        look = self._looks(None if on_progress is None else seen.append, None)
        waits = pauses(None if timeout_s is None else time.monotonic() + timeout_s)
        while True:
            status = await in_thread(look)
            if on_progress is not None and seen:
                on_progress(seen.pop())
            if status is not None:
                return status
            pause_s = next(waits, None)
            if pause_s is None:
                raise self._late(timeout_s)
            await asyncio.sleep(pause_s)

    def _late(self, timeout_s: float | None) -> WaitTimeoutError:
        return WaitTimeoutError(f"run {self.run_id} has not ended within {timeout_s} s; it goes on")

    def _looks(
        self,
        on_progress: Callable[[Status], None] | None,
        on_away: Callable[[BrokerError], None] | None,
    ) -> Callable[[], Status | None]:
        """Return a function that returns the status if the run has ended, else None.

        It raises BrokerError if the server did not answer for too long.
        """
        answered_at = time.monotonic()
        shown_at = 0.0

        def look() -> Status | None:
            nonlocal answered_at, shown_at
            shows = on_progress is not None and time.monotonic() - shown_at >= _SHOW_S
            status = None
            try:
                status = self._poll(on_progress, shows=shows)
                answered_at = time.monotonic()
                shown_at = answered_at if shows else shown_at
            except BrokerError as error:
                self._tolerate(error, answered_at, on_away)
            if status is None:
                self._check()
            return status

        return look

    def _poll(self, on_progress: Callable[[Status], None] | None, *, shows: bool) -> Status | None:
        """Return the status if the run has ended, else None; show it now, or if it has ended."""
        # One command, and many for the whole status.
        if not shows and not self._store.run(self.run_id).has_ended:
            return None
        status = self.status()
        if on_progress is not None:
            on_progress(status)
        return status if status.status.has_ended else None

    def _tolerate(
        self, error: BrokerError, answered_at: float, on_away: Callable[[BrokerError], None] | None
    ) -> None:
        if not error.is_passing or time.monotonic() - answered_at >= AWAY_S:
            raise BrokerError(
                f"{error}; run {self.run_id} goes on: `fanout watch {self.run_id}` follows it again"
            ) from error
        if on_away is not None:
            on_away(error)

    def write_problem(self) -> str | None:
        """Return why the server refuses writes of workers for now, or None.

        For a run without progress, whose status can be read all the same. It costs the server a script.
        """
        refusal = write_refusal(self._store, "client")
        # A right that only this client lacks does not affect the workers.
        return str(refusal) if refusal is not None and refusal.is_passing else None

    def model_limit(self) -> LimitState | None:
        """Return the state of the rate limits of the run's model, of several the most held up.

        None if there is none, or the server does not answer.
        """
        found = self.held_model()
        return None if found is None else found[1]

    def held_model(self) -> tuple[str, LimitState] | None:
        """Return the model of the run whose calls wait longest, and the state of its limits.

        None if no model has limits, or the server does not answer.
        """
        try:
            limits = self._store.limits()
        except BrokerError:
            return None
        found = [(name, limits[name]) for name in self.spec.all_models if name in limits]
        return max(found, key=lambda one: one[1].blocked_s, default=None)

    def result(self) -> Result[Any]:
        """Return the outcomes so far; all of them once the run has ended.

        Answers with a schema are instances of its type in the process that submitted the run with a
        type, and JSON values in others.
        """
        status = self.status()
        spec = self.spec
        value, notes = self.aggregate()
        aggregated, faults = self._typed_aggregate(value)
        branches = list(self.outcomes())
        return Result(
            run_id=self.run_id,
            status=status.status,
            branches=branches,
            aggregated=aggregated,
            aggregated_json=None if self._types.aggregate is None else value,
            notes=[*truncation_notes(status), *notes, *faults],
            reduce_errors=self.stored_result().errors,
            usage=status.usage,
            usage_by_model=status.usage_by_model or {spec.model: status.usage},
            error=self.problem(status),
            elapsed_s=status.elapsed_s,
            layout=layout_of(spec),
            evaluation=evaluate(spec, branches),
        )

    def _typed_aggregate(self, value: Any) -> tuple[Any, list[str]]:
        """Return an aggregate with its instances, and why some could not be made."""
        of_type = self._types.aggregate
        if of_type is None or value is None:
            return value, []
        if not self.spec.group_by:
            return typed_value(of_type, value, "the aggregate")
        made = {group: typed_value(of_type, one, group) for group, one in value.items()}
        faults = [fault for _, found in made.values() for fault in found]
        return {group: one for group, (one, _) in made.items()}, faults

    def evaluation(self, labels: str | Mapping[str, str] | None = None) -> Evaluation | None:
        """Return the answers so far against labels, read branch by branch; None if there are none.

        Args:
            labels: The column of the labels, or a mapping of fields of the answer to columns; None
                takes those of the job.

        Raises:
            SpecError: The labels do not fit the answers, or no document has such a column.
        """
        if labels is not None:
            return evaluate_by(labels, self.spec, self.outcomes())
        return evaluate(self.spec, self.outcomes())

    def problem(self, status: Status) -> str | None:
        """Return why a run failed, with the most common error of its first 50,000 branches.

        None if it did not fail.
        """
        if status.error is None or status.status is not RunStatus.FAILED:
            return status.error
        return commonest_error(status.error, self._failures())

    def _failures(self) -> Iterator[tuple[ErrorKind, str]]:
        shards = min(self._store.stage(self._map_id).shards, _LOOKED_AT_SHARDS)
        for shard_id in map(self._map_id.shard, range(shards)):
            for outcome in self._store.outcomes(shard_id).values():
                if outcome.kind is not None:
                    yield outcome.kind, outcome.message or ""

    def aggregate(self) -> tuple[Any, list[str]]:
        """Return the aggregate, by group if the run has groups, and the aggregator's notes.

        The aggregate is None if there is none, or none yet.
        """
        stored = self.stored_result()
        values = {group: one.value for group, one in stored.aggregates.items()}
        notes = [
            f"{group}: {note}" if group else note
            for group, one in stored.aggregates.items()
            for note in one.notes
        ]
        return (values or None) if self.spec.group_by else values.get(""), notes

    def stored_result(self) -> StoredResult:
        """Return the aggregates by group with counts and notes. Raises UnknownRunError."""
        data = self._store.result(self.run_id)
        if data is None:
            self._store.run(self.run_id)
            return StoredResult()
        return msgspec.json.decode(data, type=StoredResult)

    def outcomes(self, *, with_text: bool = False) -> Iterator[Output[Any]]:
        """Yield the branches that have ended, in input order; one shard is in memory at a time.

        Args:
            with_text: Whether each has the text of its chunk; those of rows have it in any case.
        """
        spec = self.spec
        for shard_id in map(self._map_id.shard, range(self._store.stage(self._map_id).shards)):
            outcomes = self._store.outcomes(shard_id)
            if outcomes:
                shard = self._store.shard(shard_id)
                for _, outcome in sorted(outcomes.items()):
                    yield self._output(spec, shard, outcome, with_text=with_text)

    def _output(
        self, spec: RunSpec, shard: Shard, outcome: Outcome, *, with_text: bool
    ) -> Output[Any]:
        answer_type = self._types.answer
        return output_of(spec, shard, outcome, with_text=with_text, answer_type=answer_type)

    def stream(self, *, with_text: bool = False) -> Iterator[Output[Any]]:
        """Yield the branches as they end, each once, until the run has ended.

        Those that had ended before come first. It asks the server several times a second, and
        tolerates an unreachable one for two minutes. Its memory does not depend on the size of the
        run.

        Args:
            with_text: Whether each has the text of its chunk; those of rows have it in any case.

        Raises:
            BrokerError: The server was unreachable for too long, or refuses; the run goes on.
            EmbeddedError: The embedded fleet has stopped.
        """
        for part, pause_s in self._parts(with_text=with_text):
            yield from part
            time.sleep(pause_s)

    async def astream(
        self, *, with_text: bool = False, cancels: bool = False
    ) -> AsyncGenerator[Output[Any], None]:
        """Yield the branches as ``stream`` does, without blocking the event loop.

        Args:
            with_text: As for ``stream``.
            cancels: Whether the run is cancelled with the task that waits for a branch: for a run
                that nobody else follows. The task ends once calls in flight have ended, or after
                10 s.

        Raises:
            BrokerError, EmbeddedError: As ``stream`` does.
        """
        parts = self._parts(with_text=with_text)
        try:
            while (found := await in_thread(lambda: next(parts, None))) is not None:
                part, pause_s = found
                for output in part:
                    yield output
                await asyncio.sleep(pause_s)
        except asyncio.CancelledError:
            if cancels:
                await finished(self.acancel())
            raise

    def _parts(self, *, with_text: bool) -> Iterator[tuple[list[Output[Any]], float]]:
        """Yield what has ended since the last look, in parts, each with the pause after it."""
        spec, ended = self.spec, EndedBranches(self._store, self.run_id)
        wait_s, answered_at, has_ended = _FIRST_STREAM_POLL_S, time.monotonic(), False
        while not has_ended:
            wait_s = min(2 * wait_s, _STREAM_POLL_S)
            part: list[Output[Any]] = []
            fault: BrokerError | None = None
            try:
                has_ended = self._store.run(self.run_id).has_ended
                for shard, outcome in ended.rest() if has_ended else ended.read():
                    part.append(self._output(spec, shard, outcome, with_text=with_text))
                    if len(part) >= _PART_OUTPUTS:
                        yield part, 0.0
                        part = []
                        # The caller may have taken its time.
                        answered_at = time.monotonic()
                answered_at = time.monotonic()
            except BrokerError as error:
                has_ended, fault = False, error
            # What was read before a fault is not read again.
            yield part, 0.0
            if fault is not None:
                self._tolerate(fault, answered_at, None)
            if not has_ended:
                self._check()
                yield [], wait_s

    def report(self) -> str:
        """Return a web page about the run that needs no other file.

        ``fanout.report.write`` writes it to a file.
        """
        from fanout.report import render

        return render(self)

    def cancel(self) -> bool:
        """Stop the run: no further input is read, calls in flight end, and outcomes stay.

        Returns:
            Whether this call stopped it; False if it had ended or was stopped before.
        """
        check_as_client(self._store)
        is_first = self._store.halt(self.run_id, RunStatus.CANCELLED)
        # Also if it was stopped before: that process may have died before the next step.
        if not self._store.run(self.run_id).has_ended:
            close_input(self._store, self._publisher, self.run_id)
            unpark(self._store, self._publisher, self.run_id)
        return is_first

    async def acancel(self) -> bool:
        """Cancel the run as ``cancel`` does, and wait 10 s at most for its end."""
        is_first = await in_thread(self.cancel)
        with suppress(WaitTimeoutError, BrokerError):
            await self.await_(_END_S)
        return is_first

    def pause(self) -> bool:
        """Let no further branch begin until ``unpause``; calls in flight continue to their end.

        Returns:
            Whether this call paused it; False if it was paused, is being stopped or has ended.
        """
        check_as_client(self._store)
        return self._known(changed=self._store.pause(self.run_id))

    def unpause(self) -> bool:
        """Let a paused run go on. Return False if it was not paused."""
        check_as_client(self._store)
        was_paused = self._known(changed=self._store.unpause(self.run_id))
        unpark(self._store, self._publisher, self.run_id)
        return was_paused

    def retry_failed(self, kinds: Iterable[ErrorKind] | None = None) -> int:
        """Process the failed branches of a run that has ended again, and redo its aggregate.

        A document that could not be read is not read again: that takes a new run. If there is
        nothing else to process, a run that has an aggregate, or can have none, stays as it is.

        Args:
            kinds: The kinds of errors to retry; None is all.

        Returns:
            The number of branches to process, without those of documents that could not be read.

        Raises:
            RunError: The run has not ended, or another process has just begun to retry it.
        """
        check_as_client(self._store)
        chosen = None if kinds is None else frozenset(kinds)
        return retry_failed(self._store, self._publisher, self.run_id, chosen)

    def _known(self, *, changed: bool) -> bool:
        """Return ``changed``. Raises UnknownRunError if there is no run that could change."""
        if not changed:
            self._store.run(self.run_id)
        return changed

    def delete(self) -> None:
        """Delete the run, its records and its messages. Raises UnknownRunError.

        Calls in flight end within a second or so, and their outcomes are dropped.
        """
        delete(self._store, self._publisher, self.run_id)
