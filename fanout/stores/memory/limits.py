"""The rate limits of the memory store."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from fanout.limits import LimitState, take
from fanout.stores.memory.base import MemoryBase

if TYPE_CHECKING:
    from fanout.limits import Rates, Slot

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
                self._limits[model] = msgspec.structs.replace(state, tokens_until=until)

    def pause_model(self, model: str, pause_s: float) -> None:
        """See Store."""
        with self._lock:
            state = self._limits.get(model, LimitState())
            until = max(state.blocked_until, time.monotonic() + pause_s)
            self._limits[model] = msgspec.structs.replace(state, blocked_until=until)
            pauses = self._totals.pauses + 1
            self._totals = msgspec.structs.replace(self._totals, pauses=pauses)

    def pause_of(self, model: str) -> float:
        """See Store."""
        state = self._limits.get(model, LimitState())
        return max(0.0, state.blocked_until - time.monotonic())

    def limits(self) -> dict[str, LimitState]:
        """See Store."""
        now = time.monotonic()
        names = LimitState.__struct_fields__
        return {
            model: LimitState(**{n: max(0.0, getattr(state, n) - now) for n in names})
            for model, state in self._limits.items()
        }
