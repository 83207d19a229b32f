"""Admission: which of the branches that wait in a worker process may make their calls next.

A call needs a place of the process, and in a run with ``max_workers`` also a permit of the run. The
process keeps as many permits as it uses, and a permit passes from a call that ends to the next one
without a round trip. What waits for a permit takes no place from other runs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from fanout.core.errors import UnknownRunError
from fanout.system.logs import about
from fanout.system.threads import copied

if TYPE_CHECKING:
    from collections.abc import Callable

    from fanout.core.state import PermitShare

__all__ = ["Admission", "AdmissionClosedError"]

# Seconds between two reports to the server while permits are in use.
_REPORT_S = 0.5
# Seconds between two requests for permits while others have them all: a fraction of the time since
# some lack, within bounds. A process with many runs asks for each more rarely.
_POLL_FRACTION = 1 / 32
_FIRST_POLL_S = 0.02
_LAST_POLL_S = 0.05
_EACH_S = 0.02
# Seconds that a permit may be idle before it is given back; and if other processes wait for some.
_IDLE_S = 0.05
_IDLE_WANTED_S = 0.01
# Seconds that a process keeps its permits if there are fewer of them than processes that want one.
_TURN_S = 5.0
# Seconds that a process keeps permits for which it has no place, while others wait for some; and
# that it then leaves to these before it asks again.
_PLACELESS_S = 1.0

_log = logging.getLogger(__name__)


class AdmissionClosedError(Exception):
    """The worker stops: no further branch may call."""


class _AskForPermits(Protocol):
    def __call__(self, run_id: str, *, max_workers: int, has: int, wanted: int) -> PermitShare: ...


class _Run:
    """The branches of one run in this process, and its permits here."""

    def __init__(self, run_id: str, max_workers: int | None, weight: float) -> None:
        self.run_id = run_id
        self.max_workers = max_workers
        self.is_capped = max_workers is not None
        self.weight = weight
        self.in_use = 0
        self.waiting: deque[asyncio.Future[None]] = deque()
        # The permits of this process, until when they are surely its own, and how many it should
        # have while other processes wait for some.
        self.granted = 0
        self.sure_until = 0.0
        self.level = 0
        # Since when it has had some, and how many permits the last reply lacked.
        self.since = 0.0
        self.is_short = False
        # Whether it leaves its only permit to another process for now.
        self.yields = False
        self.yields_places = False
        # Since when places lack for its permits, while others wait for these.
        self.placeless_since: float | None = None
        # Whether it asked for no more, as there was no place, and whether there was one since.
        self.lacks_place = False
        self.had_place = False
        self.keeper: asyncio.Task[None] | None = None
        self.wake = asyncio.Event()

    @property
    def branches(self) -> int:
        return self.in_use + len(self.waiting)

    def may_begin(self, clock: Callable[[], float]) -> bool:
        return self.max_workers is None or (
            self.in_use < self.granted and clock() < self.sure_until
        )


class Admission:
    """Gives the places of a process to the branches of its runs; used on the loop of the branches.

    A free place goes to the run with the fewest calls in flight for its weight.

    Args:
        ask: Asks the server for permits; it blocks.
        sure_s: Seconds for which the permits of a reply are surely this process's own.
        clock: Monotonic seconds.

    Attributes:
        places: Calls in flight at once; None is any number.
    """

    def __init__(
        self,
        ask: _AskForPermits,
        *,
        sure_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.places: int | None = None
        self._ask = ask
        self._sure_s = sure_s
        self._clock = clock
        self._is_ending = False
        self._runs: dict[str, _Run] = {}
        # Those of them whose branches wait.
        self._waiting: dict[str, _Run] = {}
        self._capped = 0
        self._in_use = 0
        self._is_closed = False

    @property
    def waiting_for_permits(self) -> int:
        """Branches that wait for a permit: they take no place from other runs. For any thread."""
        if not self._capped:
            # The consumer asks several times for each message.
            return 0
        runs = [run for run in copied(self._waiting.values()) if run.max_workers is not None]
        short = [run for run in runs if run.granted < self._usable(run)]
        return sum(max(0, run.branches - run.granted) for run in short)

    async def enter(self, run_id: str, max_workers: int | None, weight: float = 1.0) -> None:
        """Wait for a place, and for a permit if the run has ``max_workers``.

        Raises:
            AdmissionClosedError: The worker stops.
        """
        if self._is_closed:
            raise AdmissionClosedError
        run = self._runs.get(run_id)
        if run is None:
            run = self._runs[run_id] = _Run(run_id, max_workers, weight)
            self._capped += max_workers is not None
        if not self._waiting and self._has_place and run.may_begin(self._clock):
            self._begin(run)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        run.waiting.append(future)
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
                with suppress(ValueError):
                    run.waiting.remove(future)
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
        self._end_if_idle(run)

    def close(self) -> None:
        """Turn away the branches that wait, and all that come: the worker stops."""
        self._is_closed = True
        for run in list(self._waiting.values()):
            for future in run.waiting:
                if not future.done():
                    future.set_exception(AdmissionClosedError())
            run.waiting.clear()
            self._end_if_idle(run)

    async def aclose(self) -> None:
        """Give all permits back; the loop is about to end."""
        self._is_ending = True
        kept = [run for run in self._runs.values() if run.keeper is not None]
        for run in kept:
            run.wake.set()
        # Not cancelled: a request under way could reach the server after the last report.
        await asyncio.gather(*(run.keeper for run in kept if run.keeper), return_exceptions=True)
        for run in kept:
            run.granted, run.yields = run.in_use, True
        await asyncio.gather(*map(self._share, kept))

    def _usable(self, run: _Run) -> int:
        """Return how many permits this process could use at once, if there were enough."""
        return run.branches if self.places is None else min(run.branches, self.places)

    def _wanted(self, run: _Run) -> int:
        return min(self._usable(run), run.max_workers or 0)

    @property
    def _has_place(self) -> bool:
        return self.places is None or self._in_use < self.places

    def _begin(self, run: _Run) -> None:
        run.in_use += 1
        self._in_use += 1

    def _admit(self) -> None:
        while self._has_place and (run := self._next()) is not None:
            future = run.waiting.popleft()
            if not run.waiting:
                del self._waiting[run.run_id]
            if not future.done():
                self._begin(run)
                future.set_result(None)

    def _next(self) -> _Run | None:
        runs = [run for run in self._waiting.values() if run.may_begin(self._clock)]
        if len(runs) > 1:
            return min(runs, key=lambda run: run.in_use / run.weight)
        return runs[0] if runs else None

    def _end_if_idle(self, run: _Run) -> None:
        if not run.waiting:
            self._waiting.pop(run.run_id, None)
        if run.branches == 0 and run.keeper is None:
            if self._runs.get(run.run_id) is run:
                del self._runs[run.run_id]
                self._capped -= run.is_capped
        elif run.branches < run.granted:
            run.wake.set()

    def _give_back(self, run: _Run) -> None:
        """Lower the permits of this process to its share: other processes wait for some."""
        run.yields = run.level == 0 and self._clock() - run.since > _TURN_S
        level = 0 if run.yields else max(run.level, 1)
        if run.granted > level:
            run.granted = max(run.in_use, level)
            run.wake.set()

    def _ask_again(self) -> None:
        """Ask for the permits for which there was no place before."""
        for run in self._waiting.values():
            if run.lacks_place:
                run.lacks_place, run.had_place = False, True
                run.wake.set()

    def _ask_for_more(self, run: _Run) -> None:
        if run.max_workers is None or run.may_begin(self._clock) or self._is_ending:
            return
        if run.keeper is None:
            run.keeper = asyncio.get_running_loop().create_task(self._keep(run))
        elif not run.is_short and run.granted < self._wanted(run):
            run.wake.set()

    async def _keep(self, run: _Run) -> None:
        """Keep as many permits as the branches of a run here need, and report them."""
        enough_at = self._clock()
        try:
            while not self._is_ending:
                if not await self._share(run):
                    enough_at = self._clock()
                if not (run.granted or self._wanted(run)):
                    return
                await self._pause(run, short_s=self._clock() - enough_at)
        finally:
            run.keeper = None
            self._end_if_idle(run)

    async def _pause(self, run: _Run, *, short_s: float) -> None:
        if not self._is_ending:
            run.wake.clear()
        each_s = _EACH_S * len(self._runs)
        # Often enough to count as alive.
        wait_s = min(max(_REPORT_S, each_s), self._sure_s / 4)
        if run.is_short:
            poll_s = max(_FIRST_POLL_S, min(_LAST_POLL_S, short_s * _POLL_FRACTION), each_s)
            wait_s = min(wait_s, poll_s)
        if run.yields_places:
            run.yields_places, wait_s = False, _PLACELESS_S
        with suppress(TimeoutError):
            await asyncio.wait_for(run.wake.wait(), wait_s)
        if self._wanted(run) < run.granted:
            # Another branch may come at once.
            do_others_wait = run.level < (run.max_workers or 0)
            await asyncio.sleep(_IDLE_WANTED_S if do_others_wait else _IDLE_S)
            run.granted = max(run.in_use, min(run.granted, self._wanted(run)))
        elif self._lacks_places(run):
            run.granted, run.yields, run.yields_places = run.in_use, True, True

    def _lacks_places(self, run: _Run) -> bool:
        """Return whether permits are idle here for want of a place, while others wait for some."""
        do_others_wait = run.level < (run.max_workers or 0)
        if self._has_place or run.in_use >= run.granted or not do_others_wait:
            run.placeless_since = None
            return False
        if run.placeless_since is None:
            run.placeless_since = self._clock()
        return self._clock() - run.placeless_since >= _PLACELESS_S

    async def _share(self, run: _Run) -> bool:
        """Report the permits of this process, and ask for more; return whether some lack."""
        had, wanted, now = run.granted, self._wanted(run), self._clock()
        if run.yields:
            run.yields, wanted = False, had
        elif not (run.had_place or self._has_place) and self._next() is None:
            # Its places are full of calls whose runs have permits here: others can use more.
            run.lacks_place, wanted = True, had
        run.had_place = False
        try:
            share = await asyncio.to_thread(
                self._ask, run.run_id, max_workers=run.max_workers or 0, has=had, wanted=wanted
            )
        except UnknownRunError:
            # It was deleted: the begin of its branches says so.
            run.max_workers, run.granted, run.is_short = None, 0, False
        except Exception as error:  # noqa: BLE001 - no other code would wake the branches that wait
            text = "cannot ask for permits of run %s: %s"
            _log.warning(text, run.run_id, error, extra=about(run.run_id))
            run.is_short = True
            return True
        else:
            if had == 0:
                run.since = now
            run.granted = share.granted
            run.level = share.level
            run.sure_until = now + self._sure_s
            run.is_short = share.granted < self._wanted(run)
        self._admit()
        return run.is_short
