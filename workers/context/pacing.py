"""The pace of a worker process's calls to one model, by told and learnt rate limits.

It books the times of calls with the fleet, those of some calls at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, TypeVar

from fanout.core.errors import BrokerError
from fanout.core.rate_limits import BURST_S, CallTokens
from fanout.policy.learnt_limits import LimitLearner, has_risen
from fanout.system.logs import RateLimitFilter
from workers.context.fair_line import FairLock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fanout.core.rate_limits import LearntLimits, Rates, SeenLimits
    from fanout.stores import RedisStore
    from workers.context.fair_line import Turn

__all__ = ["Pacer", "ask_store"]

# Seconds until the server is asked again that did not answer.
_AGAIN_S = 1.0
# Seconds after which a call that waits long asks again.
_LONGEST_WAIT_S = 5.0
# One request to the server books the calls of no more than this time.
_SLICE_S = 0.1
_MOST_AT_ONCE = 100
# Seconds after which a difference of tokens is told to the server, if no call has told it by then.
_SETTLE_S = 0.25
# The weight of the latest answer in the moving mean of their lengths.
_ALPHA = 0.05

_T = TypeVar("_T")

# While the server is away, each model and each kind of step would repeat its warning.
_LOG_S = 30.0
_away_log = logging.getLogger(f"{__name__}.away")
_away_log.addFilter(RateLimitFilter(_LOG_S))


class Pacer:
    """Learns the rate limits of one model, and books the times of calls to it.

    Args:
        store: The fleet's limits; called in threads, as it blocks.
        model: The model.
        clock: Monotonic seconds.
        sleep: Waits so many seconds.
    """

    def __init__(
        self,
        store: RedisStore,
        model: str,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._store = store
        self._model = model
        self._clock = clock
        self._sleep = sleep
        # The times that are booked and not yet used, the earliest first, and the tokens of each.
        self._slots: deque[tuple[float, CallTokens]] = deque()
        self._booking = FairLock()
        # Calls that wait for a time, with their tokens.
        self._waiting = 0
        # What was used, less what was booked, and the rates of the last booking.
        self._owed_input = self._owed_output = 0.0
        self._rates: Rates | None = None
        self._settling: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._answer_tokens: float | None = None
        # The limits that the provider's headers tell; None until a reply tells any.
        self._limits: LimitLearner | None = None

    def rates(self, told: Rates, now: float) -> Rates:
        """Return the rates to keep to: those of the job, or learnt ones that are lower."""
        learnt = None if self._limits is None else self._limits.pace(now)
        return told if learnt is None else told.lower(learnt)

    @property
    def has_limits(self) -> bool:
        """Whether the provider tells limits: a refusal is then most likely for one of them."""
        return self._limits is not None and self._limits.has_limits

    def heard(self, learnt: LearntLimits) -> None:
        """Take over the limits that the fleet has learnt."""
        if self._limits is None:
            self._limits = LimitLearner()
        self._limits.heard(learnt)

    async def saw(self, seen: SeenLimits, *, began: float, is_answer: bool = True) -> None:
        """Learn from the limits in a reply to a call that began then; tell the fleet what is new."""
        if self._limits is None:
            self._limits = LimitLearner()
        before = self._limits.learnt
        if self._limits.saw(seen, began=began, now=self._clock(), is_answer=is_answer):
            await self._tell(self._limits.learnt, before)

    async def refused(self) -> None:
        """Note that the provider has refused a call."""
        if self._limits is not None and self._limits.refused(self._clock()):
            await self._tell(self._limits.learnt, None)

    async def _tell(self, learnt: LearntLimits | None, before: LearntLimits | None) -> None:
        if learnt is not None:
            tell = partial(
                self._store.put_learnt, self._model, learnt, has_risen=has_risen(before, learnt)
            )
            await ask_store(tell, f"cannot tell the fleet the limits of {self._model}")

    def likely_output(self, max_tokens: int | None) -> float:
        """Return the tokens that an answer is likely to have, by those before it."""
        if self._answer_tokens is None:
            return float(max_tokens or 0)
        return min(self._answer_tokens, max_tokens or self._answer_tokens)

    async def wait(self, rates: Callable[[], Rates], tokens: CallTokens, turn: Turn) -> None:
        """Wait until the rates allow a call of so many tokens; the runs take turns.

        Args:
            rates: Returns what the rates are by then.
            tokens: Those of the call.
            turn: The run of the branch.
        """
        self._waiting += 1
        try:
            at, booked = slot = await self._booked(rates, tokens, turn)
        finally:
            self._waiting -= 1
        try:
            await self._sleep(max(0.0, at - self._clock()))
        except BaseException:
            # Another call may have its time.
            self._slots.appendleft(slot)
            raise
        self._owes(_less(tokens, booked))

    async def _booked(
        self, rates: Callable[[], Rates], tokens: CallTokens, turn: Turn
    ) -> tuple[float, CallTokens]:
        """Return the time at which a call may begin, and the tokens that are booked for it."""
        # If there is none yet, the first call waits to ask again, and the others wait for it.
        async with self._booking.held(turn):
            while (slot := self._next_slot()) is None:
                if wait_s := await self._book(rates(), tokens):
                    # What is learnt meanwhile may be another limit.
                    await self._sleep(min(wait_s, _LONGEST_WAIT_S))
            return slot

    def _next_slot(self) -> tuple[float, CallTokens] | None:
        # A time that has passed may be used like the rate of an idle moment, but no longer.
        oldest = self._clock() - BURST_S
        while self._slots:
            slot = self._slots.popleft()
            if slot[0] >= oldest:
                return slot
        return None

    async def _book(self, rates: Rates, tokens: CallTokens) -> float:
        """Book the times of the next calls; return the seconds until the server is asked again."""
        calls = self._calls_at_once(rates, tokens)
        owed = self._owed(rates)
        total = CallTokens(
            owed.input_tokens + calls * tokens.input_tokens,
            owed.output_tokens + calls * tokens.output_tokens,
        )
        book = partial(
            self._store.reserve_calls, self._model, rates=rates, tokens=total, calls=calls
        )
        asked_at = self._clock()
        booked = await ask_store(book, f"cannot ask for the rate limit of {self._model}")
        if booked is None or not booked.is_taken:
            self._owes(owed)
            # Without the server its outcome could not be written either: the call waits.
            return _AGAIN_S if booked is None else booked.wait_s
        self._slots.extend((asked_at + wait_s, tokens) for wait_s in booked.waits_s)
        return 0.0

    def _calls_at_once(self, rates: Rates, tokens: CallTokens) -> int:
        """Return the calls to book together: those that wait, but no more than a short time's."""
        each_s = max(rates.costs_s(tokens))
        most = ceil(_SLICE_S / each_s) if each_s > 0 else _MOST_AT_ONCE
        return max(1, min(self._waiting, most, _MOST_AT_ONCE))

    def used(self, rates: Rates, booked: CallTokens, actual: CallTokens) -> None:
        """Correct what a call was taken to consume."""
        before = self._answer_tokens
        self._answer_tokens = (
            actual.output_tokens
            if before is None
            else before + _ALPHA * (actual.output_tokens - before)
        )
        self._rates = rates
        self._owes(_less(actual, booked))
        if self._settling is None and (self._owed_input or self._owed_output):
            loop = asyncio.get_running_loop()
            self._settling = loop.call_later(_SETTLE_S, self._settle)

    def unused(self, booked: CallTokens) -> None:
        """Correct what was booked for a call that has not been made at its time."""
        self._owes(_less(CallTokens(), booked))

    def _owed(self, rates: Rates) -> CallTokens:
        owed = CallTokens(self._owed_input, self._owed_output) if rates.counts_tokens else None
        self._owed_input = self._owed_output = 0.0
        return owed or CallTokens()

    def _owes(self, owed: CallTokens) -> None:
        self._owed_input += owed.input_tokens
        self._owed_output += owed.output_tokens

    def _settle(self) -> None:
        self._settling = None
        rates = self._rates
        if rates is None or not (self._owed_input or self._owed_output):
            return
        correct = partial(
            self._store.correct_slot, self._model, rates=rates, tokens=self._owed(rates)
        )
        telling = ask_store(correct, f"cannot correct the rate limit of {self._model}")
        task = asyncio.get_running_loop().create_task(telling)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _less(one: CallTokens, other: CallTokens) -> CallTokens:
    return CallTokens(
        one.input_tokens - other.input_tokens, one.output_tokens - other.output_tokens
    )


async def ask_store(step: Callable[[], _T], problem: str) -> _T | None:
    """Return the result of a step at the store; None, with a log line, if the store is unreachable."""
    try:
        return await asyncio.to_thread(step)
    except BrokerError as error:
        _away_log.warning("%s: %s", problem, error)
        return None
