"""Kept answers in a worker process: one call for identical requests, here and in the whole fleet.

The first branch of a process that asks for an answer looks into the store. If another process asks for
it, the branch waits, and so do all others of this process, without a round trip of their own. If nobody
does, the process gets a lease, and its branch makes the call. The lease lapses soon after the process
has died: then one of those that wait makes the call.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from fanout.core.errors import FanoutError
from fanout.core.kept_answers import AnswerCounts, AnswerRequest, AnswerSettled, KeptAnswer
from fanout.system.logs import RateLimitFilter
from workers.context.batches import Batches

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from concurrent.futures import Executor

    from fanout.core.kept_answers import AnswerFound, SharedFailure
    from fanout.core.settings import Settings
    from fanout.stores import RedisStore

    Settling = asyncio.Future[bool]
    # None if there is no answer, and nobody is to wait for the next one.
    Ended = KeptAnswer | SharedFailure | None

__all__ = ["Answers", "Flight"]

# Seconds between two looks for an answer that another process asks for.
_POLL_S = 0.1
# Seconds without the cache after the store has failed at it.
_AWAY_S = 5.0
_LOG_S = 60.0
# A lease lasts for this share of the visibility timeout, and is renewed so often in that time: two
# renewals may fail.
_LEASE_SHARE = 1 / 3
_RENEWALS = 4
_LEAST_LEASE_S = 2.0
# Seconds between two reports of how many calls were made and saved.
_COUNTED_S = 1.0

_log = logging.getLogger(__name__)
_away_log = logging.getLogger(f"{__name__}.away")
_away_log.addFilter(RateLimitFilter(_LOG_S))


class Flight:
    """The calls of one branch for an answer that others of this process may wait for.

    Attributes:
        key: The key of the answer.
        has_lease: Whether other processes wait for it.
        has_waited: Whether the branch has waited for the calls of another process.
    """

    __slots__ = ("_ended", "_is_left", "_result", "has_lease", "has_waited", "key")

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.has_lease = False
        self.has_waited = False
        self._result: tuple[Ended] | None = None
        self._is_left = False
        # Made when the first one waits: most often nobody does.
        self._ended: asyncio.Future[Ended] | None = None

    @property
    def ended(self) -> asyncio.Future[Ended]:
        """Becomes the answer, or how the calls failed if that is shared.

        None if nobody is to wait for the next one. Cancelled if the branch was stopped: the next one asks.
        """
        if self._ended is None:
            self._ended = asyncio.get_running_loop().create_future()
            self._tell()
        return self._ended

    def ends(self, result: Ended) -> None:
        """Tell those who wait what came of the calls; only the first end counts."""
        if self._result is None and not self._is_left:
            self._result = (result,)
            self._tell()

    def leaves(self) -> None:
        """Tell those who wait that the branch was stopped."""
        if self._result is None:
            self._is_left = True
            self._tell()

    def _tell(self) -> None:
        if self._ended is None or self._ended.done():
            return
        if self._is_left:
            self._ended.cancel()
        elif self._result is not None:
            self._ended.set_result(self._result[0])


class Answers:
    """The kept answers, for the branches of one process; used on their loop.

    Args:
        store: The store of answers; it fails at once if its server is unreachable.
        settings: How long and how many answers are kept.
        threads: The threads that ask the store.
        linger_s: Returns how many seconds an answer waits for others, to be kept with them.
        wait_for: Awaits what another branch does.

    Attributes:
        is_on: Whether answers are kept at all.
        waiting: Branches that wait for the calls of others.
    """

    def __init__(
        self,
        store: RedisStore,
        settings: Settings,
        threads: Executor,
        *,
        linger_s: Callable[[], float],
        wait_for: Callable[[asyncio.Future[Ended]], Awaitable[Ended]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.is_on = settings.cache_mb > 0
        self.waiting = 0
        self._store = store
        self._wait_for = wait_for
        self._clock = clock
        self._token = secrets.token_hex(8)
        self._ttl_s = settings.cache_ttl_s
        self._limit_mb = settings.cache_mb
        self._lease_s = max(_LEAST_LEASE_S, _LEASE_SHARE * settings.visibility_timeout_s)
        self._find = Batches(self._find_all, threads, abandoned=self._abandon)
        self._settle = Batches(self._settle_all, threads, linger_s)
        self._flights: dict[bytes, Flight] = {}
        # When each lease of this process was last known to be its own.
        self._leases: dict[bytes, float] = {}
        self._renewer: asyncio.Task[None] | None = None
        self._under_way: set[asyncio.Future[Any]] = set()
        self._away_until = float("-inf")
        self._hits = self._misses = 0
        self._saved_usd = 0.0
        self._counting: asyncio.TimerHandle | None = None

    def flight(self, key: bytes) -> Flight | None:
        """Return the calls of another branch for this answer, if there are any."""
        return self._flights.get(key)

    def begin(self, key: bytes) -> Flight:
        """Begin the calls for an answer, which others then wait for; see ``keep`` and ``leave``."""
        flight = self._flights[key] = Flight(key)
        return flight

    def begin_alone(self, key: bytes) -> Flight:
        """Begin calls for an answer that nobody waits for."""
        return Flight(key)

    def count(self, *, saved: KeptAnswer | None = None) -> None:
        """Count a call that was made, or an answer that a branch has got of the calls of another one."""
        if saved is None:
            self._misses += 1
        else:
            self._hits += 1
            self._saved_usd += saved.usage.cost_usd or 0.0
        if self._counting is None:
            loop = asyncio.get_running_loop()
            self._counting = loop.call_later(_COUNTED_S, self._report_counts)

    def _report_counts(self) -> None:
        if self._counting is None:
            return
        self._counting.cancel()
        self._counting = None
        task = asyncio.get_running_loop().create_task(self.tell_counts())
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def tell_counts(self) -> None:
        """Tell the store what was counted."""
        if not self._hits and not self._misses:
            return
        counts = AnswerCounts(hits=self._hits, misses=self._misses, saved_usd=self._saved_usd)
        self._hits = self._misses = 0
        self._saved_usd = 0.0
        with suppress(FanoutError, OSError, RuntimeError):
            await asyncio.to_thread(self._store.count_answers, counts, ttl_s=self._ttl_s)

    async def awaited(self, flight: Flight) -> Ended:
        """Return the answer of another branch, or how it failed; None if it has none.

        Raises:
            LookupError: The other branch was stopped: ask anew.
            CallStoppedError: This worker stops.
        """
        self.waiting += 1
        try:
            return await self._wait_for(flight.ended)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not flight.ended.cancelled() or (task is not None and task.cancelling()):
                raise
            raise LookupError from None
        finally:
            self.waiting -= 1

    async def found(
        self, flight: Flight, *, until: float, on_wait: Callable[[], None], anew: bool = False
    ) -> Ended:
        """Return the kept answer, or how the calls for it have just failed.

        None if the branch of this flight is to make the call.

        Args:
            flight: The flight, whose branch waits while another process asks.
            until: Monotonic seconds until which it waits.
            on_wait: Called when it begins to wait.
            anew: Whether what is there cannot be used.
        """
        if self._clock() < self._away_until:
            return None
        how = "anew" if anew else "ask"
        is_waiting = False
        try:
            while True:
                reply = await self._find(AnswerRequest(flight.key, how))  # type: ignore[arg-type]
                if reply.verdict != "wait" or self._clock() >= until:
                    break
                if not is_waiting:
                    is_waiting = flight.has_waited = True
                    self.waiting += 1
                    on_wait()
                how = "poll"
                await self._wait(_POLL_S)
        except FanoutError as error:
            self._is_away(error)
            return None
        finally:
            self.waiting -= is_waiting
        if reply.verdict == "ask":
            flight.has_lease = True
            self._lease(flight.key)
        return reply.answer or reply.failure

    async def _wait(self, seconds: float) -> None:
        future: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        timer = asyncio.get_running_loop().call_later(seconds, _wake, future)
        try:
            await self._wait_for(future)
        finally:
            timer.cancel()

    def land(self, flight: Flight, found: KeptAnswer | SharedFailure) -> None:
        """End a flight with what another one has brought."""
        flight.ends(found)
        self._end(flight)

    def keep(self, flight: Flight, ended: Ended) -> Settling | None:
        """End a flight with a new answer, and keep it, or with a failure for those that wait.

        Returns:
            Ends when that is done, or has failed; None without either, and while the store is away.
        """
        flight.ends(ended)
        if isinstance(ended, KeptAnswer):
            # Who asks meanwhile gets it from the flight.
            return self._settle_later(AnswerSettled(flight.key, "kept", ended), flight)
        if ended is not None:
            settled = AnswerSettled(flight.key, "failed", failure=ended)
            return self._settle_later(settled, flight)
        self._end(flight)
        if flight.has_lease:
            self._settle_later(AnswerSettled(flight.key, "failed"))
        return None

    def leave(self, flight: Flight) -> None:
        """End a flight whose branch was stopped: the next one that waits asks."""
        flight.leaves()
        self._end(flight)
        if flight.has_lease:
            self._settle_later(AnswerSettled(flight.key, "left"))

    def _end(self, flight: Flight) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
            self._leases.pop(flight.key, None)

    def _abandon(self, request: AnswerRequest) -> None:
        """Give up the lease that a branch may have got that was stopped meanwhile."""
        if request.key not in self._flights:
            self._settle_later(AnswerSettled(request.key, "left"))

    def _settle_later(
        self, settled: AnswerSettled, flight: Flight | None = None
    ) -> Settling | None:
        if self._clock() < self._away_until:
            if flight is not None:
                self._end(flight)
            return None
        # No task: most branches of a run with new answers get here.
        step = self._settle(settled)
        self._under_way.add(step)
        step.add_done_callback(
            self._has_settled if flight is None else partial(self._has_settled, flight=flight)
        )
        return step

    def _has_settled(self, step: Settling, *, flight: Flight | None = None) -> None:
        error = None if step.cancelled() else step.exception()
        if isinstance(error, Exception):
            # The answer is there, whether it is kept or not.
            self._is_away(error)
        self._under_way.discard(step)
        if flight is not None:
            self._end(flight)

    def _is_away(self, error: Exception) -> None:
        """Do without the cache for a while: the run goes on."""
        self._away_until = self._clock() + _AWAY_S
        _away_log.warning("no answers are kept or reused for now: %s", error)

    def _find_all(self, requests: list[AnswerRequest]) -> list[AnswerFound]:
        return self._store.find_answers(
            requests, token=self._token, ttl_s=self._ttl_s, lease_s=self._lease_s
        )

    def _settle_all(self, settled: list[AnswerSettled]) -> list[bool]:
        try:
            return self._store.settle_answers(
                settled, token=self._token, ttl_s=self._ttl_s, limit_mb=self._limit_mb
            )
        except FanoutError:
            # A full server must have room for the run again.
            with suppress(FanoutError):
                self._store.shrink_answers()
            raise

    def _lease(self, key: bytes) -> None:
        self._leases[key] = self._clock()
        if self._renewer is None or self._renewer.done():
            self._renewer = asyncio.get_running_loop().create_task(self._renew())

    async def _renew(self) -> None:
        """Renew the leases of calls that take long."""
        step_s = self._lease_s / _RENEWALS
        while self._leases:
            await asyncio.sleep(step_s)
            due_at = self._clock() - step_s
            due = [key for key, since in self._leases.items() if since <= due_at]
            if not due:
                continue
            try:
                await asyncio.to_thread(
                    self._store.renew_leases, due, token=self._token, lease_s=self._lease_s
                )
            except (FanoutError, OSError, RuntimeError) as error:
                _log.debug("leases of answers are not renewed: %s", type(error).__name__)
                continue
            now = self._clock()
            self._leases.update((key, now) for key in due if key in self._leases)

    async def aclose(self) -> None:
        """Keep what has landed; the loop is about to end."""
        self._report_counts()
        if self._under_way:
            await asyncio.wait(self._under_way)
        if self._renewer is not None:
            self._renewer.cancel()
            await asyncio.gather(self._renewer, return_exceptions=True)


def _wake(future: asyncio.Future[Ended]) -> None:
    if not future.done():
        future.set_result(None)
