"""``Run``: a handle to follow and steer a run, and to read its result."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from fanout.broker.fleet_version import check_as_client
from fanout.client.loop_threads import finished, in_thread
from fanout.client.polls import pauses, polls
from fanout.client.run_answers import RunAnswers
from fanout.client.stream import EndedBranches
from fanout.core.answer_types import UNTYPED
from fanout.core.errors import BrokerError, UnknownRunError, WaitTimeoutError
from fanout.core.records import RunStatus
from fanout.observe.probe import write_refusal
from fanout.runs.budgets import checked_budget
from fanout.runs.enqueue import close_input, delete, unpark
from fanout.runs.retried_runs import retry_failed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping

    from fanout.broker.publisher import Publisher
    from fanout.core.answer_types import AnswerTypes
    from fanout.core.rate_limits import LimitState
    from fanout.core.records import ErrorKind
    from fanout.core.spec import BudgetSpec
    from fanout.runs.branch_output import Output
    from fanout.runs.status import Status
    from fanout.stores import RedisStore

__all__ = ["AWAY_S", "Run"]

# A server that restarts, or whose replica takes over, answers again well within two minutes.
AWAY_S = 120.0

# Between two looks at what has ended: less often than the progress, as it costs more.
_FIRST_STREAM_POLL_S = 0.01
_STREAM_POLL_S = 0.25
# Seconds from one report of the progress to the next.
_SHOW_S = 0.1
# Branches that are read from the server in one go, and given one by one.
_PART_OUTPUTS = 100
# Calls in flight of a cancelled run end within a second or so, if there are workers.
_END_S = 10.0


class Run(RunAnswers):
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
        super().__init__(run_id, store, types)
        self._publisher = publisher
        self._check = check

    def typed(self, types: AnswerTypes) -> Run:
        """Return a handle of the run whose answers are instances of these types."""
        return Run(self.run_id, self._store, self._publisher, self._check, types)

    def __repr__(self) -> str:
        return f"Run({self.run_id!r})"

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
        for plan in self._plan():
            plan.cancel()
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
        for plan in self._plan():
            plan.pause()
        return self._known(changed=self._store.pause(self.run_id))

    def unpause(self) -> bool:
        """Let a paused run go on. Return False if it was not paused."""
        check_as_client(self._store)
        for plan in self._plan():
            plan.unpause()
        was_paused = self._known(changed=self._store.unpause(self.run_id))
        unpark(self._store, self._publisher, self.run_id)
        return was_paused

    def retry_failed(
        self,
        kinds: Iterable[ErrorKind] | None = None,
        *,
        budget: BudgetSpec | Mapping[str, Any] | None = None,
    ) -> int:
        """Process the failed branches of a run that has ended again, and redo its aggregate.

        A document that could not be read is not read again: that takes a new run. If there is
        nothing else to process, a run that has an aggregate, or can have none, stays as it is, unless
        calls of its aggregate have failed, such as comparisons.

        Args:
            kinds: The kinds of errors to retry; None is all.
            budget: New limits for the whole run, what it has spent included: ``usd``, ``calls`` or
                ``tokens``. Those that are not given stay.

        Returns:
            The number of branches to process, without those of documents that could not be read.

        Raises:
            RunError: The run has not ended, another process has just begun to retry it, or it was
                submitted without a budget, and cannot get one.
            SpecError: The new budget has no room for a call, or cannot be kept.
        """
        check_as_client(self._store)
        chosen = None if kinds is None else frozenset(kinds)
        limits = None if budget is None else checked_budget(budget)
        return retry_failed(self._store, self._publisher, self.run_id, chosen, limits)

    def _known(self, *, changed: bool) -> bool:
        """Return ``changed``. Raises UnknownRunError if there is no run that could change."""
        if not changed:
            self._store.run(self.run_id)
        return changed

    def delete(self) -> None:
        """Delete the run, its records and its messages. Raises UnknownRunError.

        Calls in flight end within a second or so, and their outcomes are dropped.
        """
        # First: without the run of the job, nobody would look for it.
        for plan in self._plan():
            with suppress(UnknownRunError):
                plan.delete()
        delete(self._store, self._publisher, self.run_id)

    def _plan(self) -> Iterator[Run]:
        """Yield the run in which a model splits the documents of this one, if there is one."""
        plan_id = self.plan_id
        if plan_id is not None:
            with suppress(UnknownRunError):
                self._store.run(plan_id)
                yield Run(plan_id, self._store, self._publisher, self._check)
