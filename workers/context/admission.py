"""Admission: which of the branches that wait in a worker process may make their calls next.

A call needs a place of the process, and in a run with ``max_workers`` also a permit of the run. The
process keeps as many permits as it uses, and a permit passes from a call that ends to the next one
without a round trip. What waits for a permit takes no place from other runs.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from fanout.core.permits import PermitRequest
from fanout.system.logs import RateLimitFilter, about
from fanout.system.threads import copied
from workers.context.admitted_run import AdmittedRun

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fanout.core.permits import PermitShare

__all__ = ["Admission", "AdmissionClosedError"]

# Seconds between two reports to the server while permits are in use.
_REPORT_S = 0.5
# Seconds between two requests for permits while others have them all: a fraction of the time since
# some lack, within bounds. A process with many runs asks for each more rarely, as it costs the server.
_POLL_FRACTION = 1 / 32
_FIRST_POLL_S = 0.02
_LAST_POLL_S = 0.05
_EACH_S = 0.0025
# Seconds that a permit may be idle before it is given back; and if other processes wait for some.
_IDLE_S = 0.05
_IDLE_WANTED_S = 0.01
# Seconds that a process keeps its permits if there are fewer of them than processes that want one.
_TURN_S = 5.0
# Seconds that a process keeps permits for which it has no place, while others wait for some; and
# that it then leaves to these before it asks again.
_PLACELESS_S = 1.0

# A server that is away would repeat the warning with each request.
_LOG_S = 30.0

_log = logging.getLogger(__name__)
_log.addFilter(RateLimitFilter(_LOG_S))


class AdmissionClosedError(Exception):
    """The worker stops: no further branch may call."""


class _AskForPermits(Protocol):
    """One reply for each request, in order; None if there is no such run."""

    def __call__(
        self, requests: Sequence[PermitRequest], /
    ) -> Sequence[PermitShare | Exception | None]: ...


class Admission:
    """Gives the places of a process to the branches of its runs; used on the loop of the branches.

    A free place goes to the run with the fewest calls in flight for its weight.

    Args:
        ask: Asks the server for the permits of some runs; it blocks.
        sure_s: Seconds for which the permits of a reply are surely this process's own.
        clock: Monotonic seconds.

    Attributes:
        places: Calls in flight at once; None is any number.
        away: Branches that have left their places to wait for a limit; for any thread.
        returning: Those of them that wait for a place again.
    """

    def __init__(
        self,
        ask: _AskForPermits,
        *,
        sure_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.places: int | None = None
        self.away = self.returning = 0
        self._ask = ask
        self._sure_s = sure_s
        self._clock = clock
        self._is_ending = False
        self._runs: dict[str, AdmittedRun] = {}
        # Those of them whose branches wait.
        self._waiting: dict[str, AdmittedRun] = {}
        self._capped = 0
        self._in_use = 0
        self._is_closed = False
        self._keeper: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        # When the permits of all runs are reported next.
        self._report_at = 0.0

    @property
    def waiting_for_permits(self) -> int:
        """Branches that wait for a permit: they take no place from other runs. For any thread."""
        if not self._capped:
            # The consumer asks several times for each message.
            return 0
        runs = [run for run in copied(self._waiting.values()) if run.max_workers is not None]
        short = [run for run in runs if run.granted < self._usable(run)]
        return sum(max(0, run.branches - run.granted) for run in short)

    def begins(self, run_id: str, max_workers: int | None, weight: float = 1.0) -> bool:
        """Take a place, and a permit, if that takes no wait; return whether it did.

        Raises:
            AdmissionClosedError: The worker stops.
        """
        if self._is_closed:
            raise AdmissionClosedError
        if self._waiting or not (self.places is None or self._in_use < self.places):
            return False
        run = self._runs.get(run_id)
        if run is None:
            if max_workers is not None:
                # It has no permits yet.
                return False
            run = self._runs[run_id] = AdmittedRun(run_id, max_workers, weight)
        elif not (run.max_workers is None or run.may_begin(self._clock)):
            return False
        run.in_use += 1
        self._in_use += 1
        return True

    async def enter(
        self, run_id: str, max_workers: int | None, weight: float = 1.0, *, is_back: bool = False
    ) -> None:
        """Wait for a place, and for a permit if the run has ``max_workers``.

        A branch that comes back goes before those of its run that have not begun.

        Raises:
            AdmissionClosedError: The worker stops.
        """
        if self.begins(run_id, max_workers, weight):
            return
        run = self._runs.get(run_id)
        if run is None:
            run = self._runs[run_id] = AdmittedRun(run_id, max_workers, weight)
            self._capped += max_workers is not None
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        run.add(future, is_back=is_back)
        self._waiting[run_id] = run
        self._admit()
        if not future.done():
            self._ask_for_more(run)
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.leave(run_id)
            else:
                run.drop(future)
                self._end_if_idle(run)
            raise

    def leave(self, run_id: str) -> None:
        """Give the place and the permit to the next branch."""
        run = self._runs[run_id]
        run.in_use -= 1
        self._in_use -= 1
        if run.granted > run.level and run.granted > run.in_use:
            self._give_back(run)
        if self._waiting:
            self._admit()
            if self._has_place:
                self._ask_again()
        if not run.in_use or run.is_kept:
            self._end_if_idle(run)

    def close(self) -> None:
        """Turn away the branches that wait, and all that come: the worker stops."""
        self._is_closed = True
        for run in list(self._waiting.values()):
            for future in run.waiting:
                if not future.done():
                    future.set_exception(AdmissionClosedError())
            run.clear()
            self._end_if_idle(run)

    async def aclose(self) -> None:
        """Give all permits back; the loop is about to end."""
        self._is_ending = True
        self._wake.set()
        if self._keeper is not None:
            # Not cancelled: a request under way could reach the server after the last report.
            await asyncio.gather(self._keeper, return_exceptions=True)
        kept = self._kept
        for run in kept:
            run.granted, run.yields = run.in_use, True
        if kept:
            await self._share(kept)

    def _usable(self, run: AdmittedRun) -> int:
        """Return how many permits this process could use at once, if there were enough."""
        return run.branches if self.places is None else min(run.branches, self.places)

    def _wanted(self, run: AdmittedRun) -> int:
        return min(self._usable(run), run.max_workers or 0)

    @property
    def _has_place(self) -> bool:
        return self.places is None or self._in_use < self.places

    def _begin(self, run: AdmittedRun) -> None:
        run.in_use += 1
        self._in_use += 1

    def _admit(self) -> None:
        while self._has_place and (run := self._next()) is not None:
            future = run.pop()
            if not run.waiting:
                del self._waiting[run.run_id]
            if not future.done():
                self._begin(run)
                future.set_result(None)

    def _next(self) -> AdmittedRun | None:
        runs = [run for run in self._waiting.values() if run.may_begin(self._clock)]
        if len(runs) > 1:
            return min(runs, key=lambda run: run.in_use / run.weight)
        return runs[0] if runs else None

    def _end_if_idle(self, run: AdmittedRun) -> None:
        if not run.waiting:
            self._waiting.pop(run.run_id, None)
        if run.branches == 0 and not run.is_kept:
            if self._runs.get(run.run_id) is run:
                del self._runs[run.run_id]
                self._capped -= run.is_capped
        elif run.branches < run.granted:
            self._ask_soon(run)

    def _give_back(self, run: AdmittedRun) -> None:
        """Lower the permits of this process to its share: other processes wait for some."""
        run.yields = run.level == 0 and self._clock() - run.since > _TURN_S
        level = 0 if run.yields else max(run.level, 1)
        if run.granted > level:
            run.granted = max(run.in_use, level)
            self._ask_soon(run)

    def _ask_again(self) -> None:
        """Ask for the permits for which there was no place before."""
        for run in self._waiting.values():
            if run.lacks_place:
                run.lacks_place, run.had_place = False, True
                self._ask_soon(run)

    def _ask_for_more(self, run: AdmittedRun) -> None:
        if run.max_workers is None or run.may_begin(self._clock) or self._is_ending:
            return
        if not run.is_kept:
            run.is_kept = True
            self._ask_soon(run)
            if self._keeper is None:
                self._report_at = self._clock() + self._report_s
                self._keeper = asyncio.get_running_loop().create_task(self._keep())
        elif not run.is_short and run.granted < self._wanted(run):
            self._ask_soon(run)

    def _ask_soon(self, run: AdmittedRun) -> None:
        """Report the permits of a run now, not with the next report of all runs."""
        if run.is_kept and run.idle_since is None:
            run.due_at = self._clock()
            self._wake.set()

    @property
    def _kept(self) -> list[AdmittedRun]:
        return [run for run in self._runs.values() if run.is_kept]

    @property
    def _report_s(self) -> float:
        # Often enough to count as alive.
        return min(_REPORT_S, self._sure_s / 4)

    async def _keep(self) -> None:
        """Keep as many permits of each run as its branches here need, and report them."""
        try:
            while not self._is_ending and (kept := self._kept):
                if due := self._due(kept):
                    await self._share(due)
                    for run in due:
                        self._plan(run)
                else:
                    await self._pause(min(self._report_at, *(run.due_at for run in kept)))
        finally:
            self._keeper = None

    async def _pause(self, until: float) -> None:
        if not self._is_ending:
            self._wake.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), max(0.0, until - self._clock()))

    def _due(self, kept: list[AdmittedRun]) -> list[AdmittedRun]:
        """Return the runs to report now, in one request."""
        now = self._clock()
        if now >= self._report_at:
            self._report_at = now + self._report_s
            due = [run for run in kept if run.rests_until <= now]
        elif any(run.due_at <= now for run in kept):
            # Those that lack permits ask together, a little early.
            early_at = now + self._poll_s(0.0) / 2
            due = [run for run in kept if run.due_at <= (early_at if run.is_short else now)]
        else:
            return []
        return [run for run in due if self._is_ready(run, now)]

    def _is_ready(self, run: AdmittedRun, now: float) -> bool:
        """Decide how many permits to keep; return whether that is clear."""
        run.rests_until = 0.0
        if self._wanted(run) < run.granted:
            if run.idle_since is None:
                run.idle_since = now
            do_others_wait = run.level < (run.max_workers or 0)
            run.due_at = run.idle_since + (_IDLE_WANTED_S if do_others_wait else _IDLE_S)
            if now < run.due_at:
                # Another branch may come at once.
                return False
            run.granted = max(run.in_use, self._wanted(run))
        elif self._lacks_places(run):
            run.granted, run.yields, run.rests_until = run.in_use, True, now + _PLACELESS_S
        run.idle_since = None
        return True

    def _plan(self, run: AdmittedRun) -> None:
        """Decide when to ask again for a run that has just been reported."""
        now = self._clock()
        if not (run.granted or self._wanted(run)):
            run.is_kept = False
            self._end_if_idle(run)
        elif self._wanted(run) < run.granted:
            run.due_at = now
        elif run.rests_until > now:
            run.due_at = run.rests_until
        elif run.is_short and not run.has_failed:
            if run.short_since is None:
                run.short_since = now
            run.due_at = now + self._poll_s(now - run.short_since)
        else:
            run.short_since, run.due_at = None, math.inf

    def _poll_s(self, short_s: float) -> float:
        """Return the seconds between two requests for permits that have lacked for ``short_s``."""
        own_s = max(_FIRST_POLL_S, min(_LAST_POLL_S, short_s * _POLL_FRACTION))
        return max(own_s, _EACH_S * len(self._runs))

    def _lacks_places(self, run: AdmittedRun) -> bool:
        """Return whether permits are idle here for want of a place, while others wait for some."""
        do_others_wait = run.level < (run.max_workers or 0)
        if self._has_place or run.in_use >= run.granted or not do_others_wait:
            run.placeless_since = None
            return False
        if run.placeless_since is None:
            run.placeless_since = self._clock()
        return self._clock() - run.placeless_since >= _PLACELESS_S

    async def _share(self, runs: list[AdmittedRun]) -> None:
        """Report the permits of this process for some runs, and ask for more."""
        is_full = not self._has_place and self._next() is None
        requests, now = [self._request(run, is_full=is_full) for run in runs], self._clock()
        shares: Sequence[PermitShare | Exception | None]
        try:
            shares = await asyncio.to_thread(self._ask, requests)
        except Exception as error:  # noqa: BLE001 - no other code would wake the branches that wait
            shares = [error] * len(runs)
        problems: dict[str, list[AdmittedRun]] = {}
        for run, request, share in zip(runs, requests, shares, strict=True):
            if isinstance(share, Exception):
                # The next report of all runs asks again.
                run.is_short = run.has_failed = True
                problems.setdefault(str(share), []).append(run)
            elif share is None:
                # It was deleted: the begin of its branches says so.
                run.max_workers, run.granted, run.is_short = None, 0, False
            else:
                self._take(run, request, share, now)
        for problem, those in problems.items():
            more = f" and {len(those) - 1} more" if len(those) > 1 else ""
            text = "cannot ask for permits of run %s%s: %s"
            _log.warning(text, those[0].run_id, more, problem, extra=about(those[0].run_id))
        self._admit()

    def _request(self, run: AdmittedRun, *, is_full: bool) -> PermitRequest:
        wanted = self._wanted(run)
        if run.yields:
            run.yields, wanted = False, run.granted
        elif is_full and not run.had_place:
            # Its places are full of calls whose runs have permits here: others can use more.
            run.lacks_place, wanted = True, run.granted
        run.had_place = False
        return PermitRequest(
            run_id=run.run_id, max_workers=run.max_workers or 0, has=run.granted, wanted=wanted
        )

    def _take(
        self, run: AdmittedRun, request: PermitRequest, share: PermitShare, now: float
    ) -> None:
        if request.has == 0:
            run.since = now
        run.has_failed = False
        run.granted, run.level = share.granted, share.level
        # From the request on, as the server may have had it at once.
        run.sure_until = now + self._sure_s
        run.is_short = share.granted < self._wanted(run)
