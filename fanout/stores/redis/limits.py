"""The rate limits of the Redis store."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from fanout.core.rate_limits import BURST_S, MAX_AHEAD_S, LimitState, Reservation
from fanout.core.state import PermitShare
from fanout.policy.outages import FIRST_PROBE_S, FORGET_S, MAX_PROBE_S, REOPEN_S, BreakerReply
from fanout.stores import codec
from fanout.stores.redis import branch_scripts, fleet_scripts
from fanout.stores.redis.base import RedisBase, seconds, translated

if TYPE_CHECKING:
    from fanout.core.rate_limits import Rates

__all__ = ["RedisLimits"]

# Seconds that the state of limits is kept: no reservation lasts longer.
_KEPT_S = 3_600


class RedisLimits(RedisBase):
    """The rates and pauses of models. The server's clock counts: those of workers differ."""

    @translated
    def reserve_call(self, model: str, *, rates: Rates, tokens: int) -> Reservation:
        """Take the next time at which a call to a model may begin: see fanout.core.rate_limits.

        The caller passes the rates. All callers for a model share its use of them.
        """
        costs = [rates.request_s(), rates.tokens_s(tokens)]
        args = [model, *costs, BURST_S, MAX_AHEAD_S, _KEPT_S]
        wait_s, is_taken = self._call(fleet_scripts.TAKE_SLOT, [self._limits], args)
        return Reservation(wait_s=float(wait_s), is_taken=is_taken == b"1")

    @translated
    def share_permits(
        self,
        run_id: str,
        *,
        process: str,
        dies_after_s: float,
        max_workers: int,
        has: int,
        wanted: int,
    ) -> PermitShare:
        """Report the permits that a process keeps for a run, and ask for those that it could use.

        All processes together never have more than ``max_workers``. What a process has stays its
        own until it keeps less or is dead.

        Args:
            run_id: The run.
            process: The process.
            dies_after_s: Seconds without a report after which a process counts as dead.
            max_workers: The run's cap.
            has: The permits that it keeps.
            wanted: How many it could use at once.

        Raises:
            UnknownRunError: There is no such run.
        """
        run = self._run(run_id)
        keys = [run, f"{run}:permits", self._holders]
        args = [process, dies_after_s, self._ttl_s, max_workers, has, wanted]
        granted, level = self._call(branch_scripts.SHARE_PERMITS, keys, args)
        self._require(run_id, granted >= 0)
        return PermitShare(granted=granted, level=level)

    @translated
    def correct_slot(self, model: str, *, rates: Rates, tokens: int) -> None:
        """Correct the tokens of a call by the difference between actual use and estimate."""
        self._call(fleet_scripts.CORRECT_SLOT, [self._limits], [model, rates.tokens_s(tokens)])

    @translated
    def pause_model(self, model: str, pause_s: float) -> None:
        """Let no call to a model begin for ``pause_s`` seconds: its provider has refused one."""
        keys = [self._limits, self._totals]
        self._call(fleet_scripts.PAUSE_MODEL, keys, [model, pause_s, _KEPT_S])

    @translated
    def pause_of(self, model: str) -> BreakerReply:
        """Return whether a call to a model may begin: see fanout.policy.outages.

        While the breaker is open, one caller at a time may probe the model, and the others wait.
        While it is closed, this is one read.
        """
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.hmget(self._limits, [f"b:{model}", f"o:{model}"])
            now, (until, opened_at) = pipe.execute()
        pause_s = 0.0 if until is None else max(0.0, float(until) - seconds(now))
        if opened_at is None:
            return BreakerReply(wait_s=pause_s)
        if pause_s > 0:
            return BreakerReply(wait_s=pause_s, down_s=max(0.0, seconds(now) - float(opened_at)))
        args = [model, FIRST_PROBE_S, MAX_PROBE_S, FORGET_S]
        wait_s, down_s, is_probe = self._call(fleet_scripts.ASK_BREAKER, [self._limits], args)
        return BreakerReply(
            wait_s=float(wait_s),
            down_s=float(down_s) if down_s else None,
            is_probe=is_probe == b"1",
        )

    @translated
    def trip_breaker(self, model: str) -> bool:
        """Report that a model fails for the whole fleet; return whether the breaker is open."""
        args = [model, FIRST_PROBE_S, FORGET_S, REOPEN_S, _KEPT_S]
        return bool(self._call(fleet_scripts.TRIP_BREAKER, [self._limits], args))

    @translated
    def close_breaker(self, model: str) -> None:
        """Close a model's breaker after a successful call. Its pauses end too."""
        self._call(fleet_scripts.CLOSE_BREAKER, [self._limits], [model, _KEPT_S])

    @translated
    def limits(self) -> dict[str, LimitState]:
        """Return the use of rate limits by model, in seconds from now."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.hgetall(self._limits)
            now, fields = pipe.execute()
        return codec.decode_limits(cast("dict[bytes, bytes]", fields), seconds(now))
