"""The rate limits of the Redis store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from fanout.core.rate_limits import BURST_S, MAX_AHEAD_S, LimitState, Slot
from fanout.policy.outages import FIRST_PROBE_S, FORGET_S, MAX_PROBE_S, REOPEN_S, Standing
from fanout.stores import codec
from fanout.stores.redis.base import RedisBase, seconds, translated

if TYPE_CHECKING:
    from fanout.core.rate_limits import Rates

__all__ = ["RedisLimits"]

# Nothing is reserved for longer.
_KEPT_S = 3_600


class RedisLimits(RedisBase):
    """See ``fanout.stores.base.Fleet``. The server's clock counts: those of workers differ."""

    @translated
    def take_slot(self, model: str, *, rates: Rates, tokens: int) -> Slot:
        """See Store."""
        costs = [rates.request_s(), rates.tokens_s(tokens)]
        args: list[Any] = [model, *costs, BURST_S, MAX_AHEAD_S, _KEPT_S]
        wait_s, is_taken = self._take_slot(keys=[self._limits], args=args)
        return Slot(wait_s=float(wait_s), is_taken=is_taken == b"1")

    @translated
    def correct_slot(self, model: str, *, rates: Rates, tokens: int) -> None:
        """See Store."""
        self._correct_slot(keys=[self._limits], args=[model, rates.tokens_s(tokens)])

    @translated
    def pause_model(self, model: str, pause_s: float) -> None:
        """See Store."""
        keys = [self._limits, self._totals]
        self._pause_model(keys=keys, args=[model, pause_s, _KEPT_S])

    @translated
    def pause_of(self, model: str) -> Standing:
        """See Store. Nothing but a read, while the model is well."""
        with self._redis.pipeline() as pipe:
            pipe.time()
            pipe.hmget(self._limits, [f"b:{model}", f"o:{model}"])
            now, (until, opened_at) = pipe.execute()
        pause_s = 0.0 if until is None else max(0.0, float(until) - seconds(now))
        if opened_at is None:
            return Standing(wait_s=pause_s)
        if pause_s > 0:
            return Standing(wait_s=pause_s, down_s=max(0.0, seconds(now) - float(opened_at)))
        args: list[Any] = [model, FIRST_PROBE_S, MAX_PROBE_S, FORGET_S]
        wait_s, down_s, is_probe = self._ask_breaker(keys=[self._limits], args=args)
        return Standing(
            wait_s=float(wait_s),
            down_s=float(down_s) if down_s else None,
            is_probe=is_probe == b"1",
        )

    @translated
    def trip_breaker(self, model: str) -> bool:
        """See Store."""
        args: list[Any] = [model, FIRST_PROBE_S, FORGET_S, REOPEN_S, _KEPT_S]
        return bool(self._trip_breaker(keys=[self._limits], args=args) == 1)

    @translated
    def close_breaker(self, model: str) -> None:
        """See Store."""
        self._close_breaker(keys=[self._limits], args=[model, _KEPT_S])

    @translated
    def limits(self) -> dict[str, LimitState]:
        """See Store."""
        with self._redis.pipeline() as pipe:
            pipe.time()
            pipe.hgetall(self._limits)
            now, fields = pipe.execute()
        return codec.decode_limits(cast("dict[bytes, bytes]", fields), seconds(now))
