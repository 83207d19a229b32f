"""The rate limits of the Redis store."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, cast

from fanout.core.errors import StoredDataError
from fanout.core.permits import PermitShare
from fanout.core.rate_limits import (
    BURST_S,
    MAX_AHEAD_S,
    CallTokens,
    LimitState,
    Reservation,
    starts_s,
)
from fanout.policy.adaptive import reported
from fanout.policy.outages import (
    FIRST_PROBE_S,
    FORGET_S,
    MAX_PROBE_S,
    REOPEN_S,
    BreakerReply,
    spread,
)
from fanout.stores import limit_codec
from fanout.stores.redis import branch_scripts, fleet_scripts
from fanout.stores.redis.base import RedisBase, seconds, translated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fanout.core.permits import PermitRequest
    from fanout.core.rate_limits import LearntLimits, Rates
    from fanout.policy.adaptive import CallWindow, WindowReport

__all__ = ["RedisLimits"]

# Seconds that the state of limits is kept: no reservation lasts longer.
_KEPT_S = 3_600
# A script blocks the server while it runs: a call for this many runs takes about 3 ms.
_RUNS_AT_ONCE = 200
# Processes report twice a second: two that do so at the same moment try again.
_TRIES = 40
# In place of permits that cannot be read.
_DAMAGED = -2


def _permit_share(
    request: PermitRequest, granted: int, level: int
) -> PermitShare | StoredDataError | None:
    if granted == _DAMAGED:
        return StoredDataError(f"the permits of run {request.run_id} are damaged: delete the run")
    return PermitShare(granted=granted, level=level) if granted >= 0 else None


class RedisLimits(RedisBase):
    """The rates and pauses of models. The server's clock counts: those of workers differ."""

    @translated
    def reserve_calls(
        self, model: str, *, rates: Rates, tokens: CallTokens | None = None, calls: int = 1
    ) -> Reservation:
        """Take the next times at which calls to a model may begin: see fanout.core.rate_limits.

        The caller passes the rates. All callers for a model share its use of them.

        Args:
            model: The model.
            rates: Its rates.
            tokens: The tokens of all these calls together.
            calls: The number of calls.
        """
        costs = rates.costs_s(tokens or CallTokens(), calls=calls)
        args = [model, BURST_S, MAX_AHEAD_S, _KEPT_S, *costs]
        wait_s, is_taken, *ahead = self._call(fleet_scripts.TAKE_SLOT, [self._limits], args)
        if is_taken != b"1":
            return Reservation(wait_s=float(wait_s), is_taken=False)
        waits_s = starts_s(float(wait_s), [float(each) for each in ahead], costs, calls=calls)
        return Reservation(wait_s=float(wait_s), is_taken=True, waits_s=waits_s)

    @translated
    def share_permits(
        self, requests: Sequence[PermitRequest], *, process: str, dies_after_s: float
    ) -> list[PermitShare | StoredDataError | None]:
        """Report the permits that a process keeps for runs, and ask for those that it could use.

        All processes together never have more than a run's ``max_workers``. What a process has
        stays its own until it keeps less or is dead.

        Args:
            requests: One for each run.
            process: The process.
            dies_after_s: Seconds without a report after which a process counts as dead.

        Returns:
            The replies in order: None where there is no such run, an error where the server's
            records of it are damaged.
        """
        replies: list[PermitShare | StoredDataError | None] = []
        for start in range(0, len(requests), _RUNS_AT_ONCE):
            some = requests[start : start + _RUNS_AT_ONCE]
            runs = [self._run(request.run_id) for request in some]
            keys = [self._holders, *(key for run in runs for key in (run, f"{run}:permits"))]
            args: list[Any] = [process, dies_after_s, self._ttl_s]
            args += [n for one in some for n in (one.max_workers, one.has, one.wanted)]
            flat = self._call(branch_scripts.SHARE_PERMITS, keys, args)
            replies += map(_permit_share, some, flat[::2], flat[1::2])
        return replies

    @translated
    def correct_slot(self, model: str, *, rates: Rates, tokens: CallTokens) -> None:
        """Correct the tokens of calls by the difference between actual use and estimate."""
        costs = rates.costs_s(tokens)[1:]
        self._call(fleet_scripts.CORRECT_SLOT, [self._limits], [model, *costs])

    @translated
    def put_learnt(self, model: str, learnt: LearntLimits, *, has_risen: bool = False) -> None:
        """Tell the fleet the limits that a provider's headers tell.

        If one ``has_risen``, what calls have booked by the lower one is forgotten.
        """
        with self._redis.pipeline(transaction=False) as pipe:
            if has_risen:
                pipe.hdel(self._limits, *(f"{kind}:{model}" for kind in "rtiu"))
            pipe.hset(self._limits, f"l:{model}", limit_codec.encode(learnt))
            pipe.expire(self._limits, _KEPT_S)
            pipe.execute()

    @translated
    def report_window(
        self, model: str, report: WindowReport
    ) -> tuple[CallWindow | None, float] | None:
        """Report the calls of a process to a model: see fanout.policy.adaptive.

        Returns the window then, and the time by the server's clock; None if other processes have
        reported so often in the meantime that this report was not counted.
        """
        for _ in range(_TRIES):
            with self._redis.pipeline(transaction=False) as pipe:
                pipe.time()
                pipe.hget(self._limits, f"a:{model}")
                moment, before = pipe.execute()
            now = seconds(moment)
            window = reported(limit_codec.decode_window(before), report, now=now)
            after = b"" if window is None else limit_codec.encode(window)
            args = [model, before or b"", after, _KEPT_S]
            if (before or b"") == after or self._call(
                fleet_scripts.SWAP_WINDOW, [self._limits], args
            ):
                return window, now
        return None

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
            pipe.hmget(self._limits, [f"{kind}:{model}" for kind in "bola"])
            now, (until, opened_at, told, window) = pipe.execute()
        pause_s = 0.0 if until is None else max(0.0, float(until) - seconds(now))
        learnt = limit_codec.decode_learnt(told)
        if opened_at is None:
            return BreakerReply(wait_s=pause_s, learnt=learnt, has_window=window is not None)
        if pause_s > 0:
            down_s = max(0.0, seconds(now) - float(opened_at))
            return BreakerReply(wait_s=pause_s, down_s=down_s, learnt=learnt)
        share = spread(random.random())  # noqa: S311 - see there
        args = [model, share * FIRST_PROBE_S, share * MAX_PROBE_S, FORGET_S]
        wait_s, down_s, is_probe = self._call(fleet_scripts.ASK_BREAKER, [self._limits], args)
        return BreakerReply(
            wait_s=float(wait_s),
            down_s=float(down_s) if down_s else None,
            is_probe=is_probe == b"1",
            learnt=learnt,
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
        return limit_codec.decode_limits(cast("dict[bytes, bytes]", fields), seconds(now))
