"""The rate limits of the memory store."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from msgspec import structs

from fanout.core.rate_limits import LimitState, take
from fanout.policy.outages import CLOSED, Standing, ask, close, down_s, trip
from fanout.stores.memory.base import MemoryBase

if TYPE_CHECKING:
    from fanout.core.rate_limits import Rates, Slot

__all__ = ["MemoryLimits"]


class MemoryLimits(MemoryBase):
    """See ``fanout.stores.base.Fleet``."""

    def take_slot(self, model: str, *, rates: Rates, tokens: int) -> Slot:
        """See Store."""
        with self._lock:
            slot, self._limits[model] = take(
                self._limits.get(model, LimitState()),
                now=time.monotonic(),
                request_s=rates.request_s(),
                tokens_s=rates.tokens_s(tokens),
            )
            return slot

    def correct_slot(self, model: str, *, rates: Rates, tokens: int) -> None:
        """See Store."""
        with self._lock:
            state = self._limits.get(model)
            if state is not None:
                until = state.tokens_until + rates.tokens_s(tokens)
                self._limits[model] = structs.replace(state, tokens_until=until)

    def pause_model(self, model: str, pause_s: float) -> None:
        """See Store."""
        with self._lock:
            state = self._limits.get(model, LimitState())
            until = max(state.blocked_until, time.monotonic() + pause_s)
            self._limits[model] = structs.replace(state, blocked_until=until)
            pauses = self._totals.pauses + 1
            self._totals = structs.replace(self._totals, pauses=pauses)

    def pause_of(self, model: str) -> Standing:
        """See Store."""
        with self._lock:
            now = time.monotonic()
            pause_s = max(0.0, self._limits.get(model, LimitState()).blocked_until - now)
            breaker = self._breakers.get(model, CLOSED)
            if pause_s > 0:
                # A pause that was asked for puts the next probe off.
                breaker = structs.replace(breaker, until=max(breaker.until, now + pause_s))
            standing, self._breakers[model] = ask(breaker, now=now)
            return structs.replace(standing, wait_s=max(pause_s, standing.wait_s))

    def trip_breaker(self, model: str) -> bool:
        """See Store."""
        with self._lock:
            breaker = trip(self._breakers.get(model, CLOSED), now=time.monotonic())
            self._breakers[model] = breaker
            return breaker.opened_at is not None

    def close_breaker(self, model: str) -> None:
        """See Store."""
        with self._lock:
            now = time.monotonic()
            self._breakers[model] = close(self._breakers.get(model, CLOSED), now=now)
            state = self._limits.get(model, LimitState())
            self._limits[model] = structs.replace(state, blocked_until=0.0)

    def limits(self) -> dict[str, LimitState]:
        """See Store."""
        now = time.monotonic()
        models = self._limits.keys() | self._breakers.keys()
        return {model: self._limit(model, now) for model in models}

    def _limit(self, model: str, now: float) -> LimitState:
        state = self._limits.get(model, LimitState())
        breaker = self._breakers.get(model, CLOSED)
        return LimitState(
            requests_until=max(0.0, state.requests_until - now),
            tokens_until=max(0.0, state.tokens_until - now),
            blocked_until=max(0.0, max(state.blocked_until, breaker.until) - now),
            down_s=down_s(breaker, now=now),
        )
