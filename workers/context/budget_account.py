"""A budget as one worker process uses it: it asks the server for each call, for many at a time."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from msgspec import structs

from fanout.core.budgets import NO_AMOUNTS, Amounts, BudgetReport
from fanout.core.errors import BrokerError, LLMError, UnknownRunError
from fanout.policy.budgets import (
    fits,
    has_spare,
    needed_for_spare,
    spare_room,
)
from fanout.system.logs import RateLimitFilter
from workers.context.budget_asks import Ask, Asks
from workers.context.budget_refusals import require_fit
from workers.context.inflight import CallStoppedError, StopReason
from workers.context.spare_room import COUNTED_S, SpareRoom

if TYPE_CHECKING:
    from collections.abc import Callable

    from fanout.core.budgets import BudgetReply, BudgetState
    from workers.context.inflight import InFlight

__all__ = ["BudgetAccount"]

# Seconds that what a call has used waits for the report of another one. Other processes may wait for it.
# While calls of this process go on and the budget has room for very many, nobody does: it is COUNTED_S.
_LINGER_S = 0.005
# Seconds between two reports while calls wait for others to use less than they may; of the budget of a
# day that is used up, while calls wait for the next day.
_FIRST_POLL_S = 0.05
_LAST_POLL_S = 1.0
_POLL_GROWTH = 1.5
_DAY_POLL_S = 10.0
# For so long a branch that does not fit ends without a further look at the server.
_FRESH_S = 1.0
_AGAIN_S = 1.0
# After so long without a report, a session begins anew: the server may have forgotten what it had reported,
# which would then count again.
_SESSION_S = 3_600.0
_LOG_S = 30.0

_log = logging.getLogger(__name__)
_log.addFilter(RateLimitFilter(_LOG_S))


class BudgetAccount:
    """What the calls of this process use of one budget; runs on the loop of the calls.

    Args:
        send: Sends a report to the server; it blocks.
        process: The unique name of this process.
        in_flight: Ends what waits when a run or this worker stops.
        dies_after_s: Seconds without a report after which the server takes this process for dead.
        day: The name of the budget of a day: a call that does not fit today waits for the next day. Empty
            for the budget of a run: there it fails.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        send: Callable[[BudgetReport], BudgetReply],
        *,
        process: str,
        in_flight: InFlight,
        dies_after_s: float,
        day: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._send = send
        self._process = process
        self._in_flight = in_flight
        self._beat_s = dies_after_s / 4
        self._day = day
        self._clock = clock
        self._users = 0
        self._waiting = Asks()
        self._state: BudgetState | None = None
        self._used = NO_AMOUNTS
        self._read_at = -math.inf
        self._poll_s, self._poll_at = _FIRST_POLL_S, math.inf
        self._unsent_since: float | None = None
        self._reported_at = -math.inf
        self._failed: BudgetReport | None = None
        # Whether the budget has room for more calls than those that ask; it is then asked for, too.
        self._is_roomy = False
        # Whether a call waits that the server has refused for now.
        self._has_refused = False
        # Whether the keeper waits for longer, as calls of this process go on.
        self._lingers = False
        self._wake = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._begin_session()

    def _begin_session(self) -> None:
        self._session = f"{self._process}:{secrets.token_hex(4)}"
        self._number = 0
        self._held = self._spent = self._guessed = self._reduced = NO_AMOUNTS
        self._spare, self._spare_until = SpareRoom(), math.inf

    @property
    def is_idle(self) -> bool:
        """Whether nothing here uses the budget, and the server knows what was used."""
        return not self._users and self._keeper is None and self._unsent_since is None

    def opens(self) -> None:
        """Begin to use the budget for a branch."""
        if not self._users:
            # A retry may have given the run another budget since.
            self._state = None
        self._users += 1

    def closes(self) -> None:
        """End what ``opens`` has begun."""
        self._users -= 1
        if not self._users and self._lingers:
            # The next report is due sooner.
            self._lingers = False
            self._start()

    def takes(self, most: Amounts) -> bool:
        """Take the part of a call, and return True, if that needs no question to the server."""
        # Who was refused comes first.
        if self._has_refused or not self._spare.takes(most):
            return False
        self._held += most
        return True

    async def take(
        self, most: Amounts, *, is_reduce: bool, left: Amounts = NO_AMOUNTS, waits: bool = True
    ) -> bool:
        """Wait until a call that uses at most ``most`` fits, beside what is to be left.

        Args:
            most: The most that it can use.
            is_reduce: Whether it is of the reduce.
            left: What is to be left for calls that follow it.
            waits: Whether to wait for room; if not, the answer is False where there is none now.

        Raises:
            LLMError: What is spent leaves no room for it.
            CallStoppedError: The run is gone, or this worker stops.
        """
        if left is NO_AMOUNTS and self.takes(most):
            return True
        self.require_room(most, is_reduce=is_reduce, left=left)
        self._renew()
        ask = Ask(most, is_reduce=is_reduce, left=left, waits=waits)
        self._waiting.add(ask)
        self._poll_at = -math.inf
        self._start()
        try:
            return await self._in_flight.until(ask.granted)
        except BaseException:
            self._waiting.drop(ask)
            granted = ask.granted
            is_known = granted.done() and not granted.cancelled() and not granted.exception()
            if is_known and granted.result():
                self.settle(most, NO_AMOUNTS)
            raise

    def _renew(self) -> None:
        """Begin a new session, if nothing was reported for long."""
        is_quiet = self._keeper is None and self._unsent_since is None and self._held == NO_AMOUNTS
        if is_quiet and self._clock() - self._reported_at > _SESSION_S:
            self._begin_session()

    def settle(
        self,
        most: Amounts,
        used: Amounts,
        guessed: Amounts = NO_AMOUNTS,
        *,
        is_reduce: bool = False,
    ) -> None:
        """Give back the part of a call that has ended, and note what it has used.

        ``guessed`` is the part of that which is only the most that it can be.
        """
        self._held -= most
        self._spare.frees(most, used)
        # Most calls are known to have used something.
        if used is not NO_AMOUNTS:
            self._spent += used
            if is_reduce:
                self._reduced += used
        if guessed is not NO_AMOUNTS:
            self._guessed += guessed
        if self._unsent_since is None or self._keeper is None:
            self._unsent_since = self._unsent_since or self._clock()
            self._start()

    async def aclose(self) -> None:
        """Report what was used: the loop is about to end."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        has_unsent = self._unsent_since is not None or not self._spare.is_empty
        if has_unsent or self._failed is not None:
            with suppress(BrokerError, UnknownRunError):
                if self._failed is not None:
                    await asyncio.to_thread(self._send, self._failed)
                await asyncio.to_thread(self._send, self._report(()))

    def require_room(self, most: Amounts, *, is_reduce: bool, left: Amounts = NO_AMOUNTS) -> None:
        """Raise LLMError if it was known a moment ago that a call does not fit."""
        state = self._state
        if state is None or self._clock() - self._read_at >= _FRESH_S:
            return
        limits = state.limits if is_reduce else state.map_limits
        if not fits(most + left, used=self._used, limits=limits):
            require_fit(most, state, is_reduce=is_reduce, day=self._day, left=left)

    def _start(self) -> None:
        if self._keeper is None or self._keeper.done():
            self._wake = asyncio.Event()
            self._keeper = asyncio.get_running_loop().create_task(self._keep())
        self._wake.set()

    async def _keep(self) -> None:
        """Report what is used, and ask for what waits, while there is any of it."""
        try:
            while (due_at := self._due_at()) < math.inf:
                if (pause_s := due_at - self._clock()) > 0:
                    self._wake.clear()
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._wake.wait(), pause_s)
                else:
                    # Other branches that are ready now ask with it.
                    await asyncio.sleep(0)
                    await self._exchange()
        finally:
            self._keeper = None

    def _due_at(self) -> float:
        """Return when to report next; infinity for never."""
        if self._failed is not None:
            return self._reported_at + _AGAIN_S
        due_at = min(self._spare_until, self._poll_at if self._waiting else math.inf)
        if self._unsent_since is not None:
            self._lingers = self._is_roomy and self._users > 0
            linger_s = COUNTED_S if self._lingers else _LINGER_S
            due_at = min(due_at, self._unsent_since + linger_s)
        if self._held != NO_AMOUNTS:
            due_at = min(due_at, self._reported_at + self._beat_s)
        return due_at

    def _report(self, asks: tuple[Ask, ...], wanted: Amounts = NO_AMOUNTS) -> BudgetReport:
        """Return the next report. Beside the calls that ask, it asks for spare room, as the last one."""
        self._number += 1
        asked = [(ask.most, ask.is_reduce, ask.left) for ask in asks]
        spare = self._spare.keeps(wanted)
        if (more := wanted - spare) != NO_AMOUNTS:
            asked.append((more, False, needed_for_spare(wanted) - more))
        return BudgetReport(
            session=self._session,
            number=self._number,
            # More than that cannot be in use when the reply comes, whether the report arrives or not.
            held=self._held + spare,
            spent=self._spent,
            guessed=self._guessed,
            reduced=self._reduced,
            asked=tuple(asked),
        )

    def _wanted(self, asks: tuple[Ask, ...]) -> Amounts:
        """Return how much spare room this process is to have; the next count of calls begins."""
        spare, begun = self._spare, self._spare.counted(len(asks), self._clock())
        if asks:
            spare.most = asks[-1].most
        return spare_room(self._held, begun=begun, most=spare.most)

    async def _exchange(self) -> None:
        """Send a report, and hand out what the reply grants."""
        report, asks, wanted = self._failed, tuple[Ask, ...](), NO_AMOUNTS
        is_again = report is not None
        try:
            if report is None:
                asks = self._waiting.next(is_due=self._poll_at <= self._clock())
                wanted = self._wanted(asks)
                report = self._report(asks, wanted if self._is_roomy else NO_AMOUNTS)
                self._unsent_since = None
            reply = await asyncio.get_running_loop().run_in_executor(None, self._send, report)
            self._failed = None
            self._reported_at = self._read_at = self._clock()
            if is_again:
                self._unsent_since = self._reported_at
            self._use(reply, report, asks, wanted)
        except UnknownRunError:
            self._end()
        except asyncio.CancelledError:
            self._unsent_since = self._clock()
            raise
        except Exception as error:  # noqa: BLE001 - no other code would wake the branches that wait
            self._try_later(error, report)

    def _try_later(self, error: Exception, report: BudgetReport | None) -> None:
        """Report again soon; what waits goes on to wait."""
        shown = error if isinstance(error, BrokerError) else type(error).__name__
        _log.warning("cannot report what is used of a budget: %s", shown)
        self._reported_at = self._clock()
        if report is None:
            self._unsent_since = self._poll_at = self._reported_at + _AGAIN_S
        else:
            # It may have arrived: the same report with the same number does not count twice. What it
            # asked for is given back with the next one, unless it is in use.
            self._failed = structs.replace(report, asked=())

    def _use(
        self, reply: BudgetReply, report: BudgetReport, asks: tuple[Ask, ...], wanted: Amounts
    ) -> None:
        """Hand out what the reply to a report grants, and note what room there is."""
        self._state, self._used = reply.state, reply.state.used
        if len(reply.granted) == len(report.asked) > len(asks) and reply.granted[-1]:
            more, _, _ = report.asked[-1]
            self._spare.grows(more)
        self._hand_out(asks, reply)
        has_room = wanted is not NO_AMOUNTS and has_spare(wanted, reply.state)
        self._has_refused = not all(reply.granted[: len(asks)])
        self._is_roomy = has_room and not self._has_refused
        self._hand_out_spare()
        is_kept = self._is_roomy and self._held != NO_AMOUNTS
        self._spare_until = math.inf
        if not (is_kept or self._spare.is_empty):
            # It is given back then, unless it is used.
            soon_s = COUNTED_S if self._is_roomy else _LINGER_S
            self._spare_until = self._reported_at + soon_s

    def _hand_out(self, asks: tuple[Ask, ...], reply: BudgetReply) -> None:
        has_granted = False
        for ask, is_granted in zip(asks, reply.granted, strict=False):
            if is_granted:
                has_granted = True
                self._held += ask.most
                self._grant(ask)
        is_full = self._refuse(reply.state)
        for ask in asks:
            if not ask.waits and not ask.granted.done():
                self._waiting.drop(ask)
                ask.ends(is_granted=False)
        if has_granted:
            self._poll_s = _FIRST_POLL_S
        else:
            longest_s = _DAY_POLL_S if is_full else _LAST_POLL_S
            self._poll_s = min(longest_s, self._poll_s * _POLL_GROWTH)
        self._poll_at = -math.inf if self._waiting.has_new else self._clock() + self._poll_s

    def _grant(self, ask: Ask) -> None:
        """Let a call begin that has its part; it gives that back if its branch was stopped meanwhile."""
        self._waiting.drop(ask)
        if not ask.ends(is_granted=True):
            self.settle(ask.most, NO_AMOUNTS)

    def _refuse(self, state: BudgetState) -> bool:
        """Refuse what will never fit; return whether there is no room left for some, if only today."""
        without_room = self._without_room(state)
        for ask in without_room:
            try:
                require_fit(ask.most, state, is_reduce=ask.is_reduce, day=self._day, left=ask.left)
            except LLMError as problem:
                self._waiting.drop(ask)
                ask.fails(problem)
        return bool(without_room)

    def _hand_out_spare(self) -> None:
        """Let those begin that came during a report, as far as there is room for them already."""
        for ask in list(self._waiting):
            if ask.left is not NO_AMOUNTS or not self.takes(ask.most):
                break
            self._grant(ask)

    def _without_room(self, state: BudgetState) -> list[Ask]:
        """Return what waits for which what is spent leaves no room."""
        used = state.used
        return [
            ask
            for ask in self._waiting
            if not fits(
                ask.most + ask.left,
                used=used,
                limits=state.limits if ask.is_reduce else state.map_limits,
            )
        ]

    def _end(self) -> None:
        """Let go what waits: the run was deleted."""
        self._held, self._unsent_since, self._failed = NO_AMOUNTS, None, None
        self._is_roomy, self._spare, self._spare_until = False, SpareRoom(), math.inf
        for ask in self._waiting.clear():
            ask.fails(CallStoppedError(StopReason.HALTED))
