"""What the fleet knows of its models' tokens, in the Redis store."""

from __future__ import annotations

from contextlib import suppress
from typing import cast

from fanout.policy.token_ratio import MOST_CALLS, TokenSums
from fanout.stores.redis import fleet_scripts, run_scripts
from fanout.stores.redis.base import RedisBase, translated

__all__ = ["RedisTokens"]

_KEPT_S = 90 * 86_400


class RedisTokens(RedisBase):
    """The sums that the tokens of a text are estimated with: see fanout.policy.token_ratio."""

    @translated
    def add_token_sums(self, model: str, sums: TokenSums) -> TokenSums:
        """Add what a process has seen of a model's calls; return what all have seen."""
        args = [model, MOST_CALLS, _KEPT_S, *map(repr, sums.numbers)]
        return _sums(self._call(fleet_scripts.ADD_SUMS, [self._tokens], args))

    @translated
    def token_sums(self, model: str) -> TokenSums:
        """Return what the fleet has seen of a model's calls."""
        return _sums(cast("bytes | None", self._redis.hget(self._tokens, model)))

    @translated
    def cut_ratio(self, model: str, script: str) -> float | None:
        """Return the bytes per token that texts of a script were last cut by; None if none was."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hget(self._cut_ratios, f"{script} {model}")
            pipe.expire(self._cut_ratios, _KEPT_S)
            kept: bytes | None = pipe.execute()[0]
        with suppress(ValueError):
            return None if kept is None else float(kept)
        return None

    @translated
    def keep_cut_ratio(self, model: str, script: str, ratio: float) -> None:
        """Keep the bytes per token that texts of a script are cut by."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hset(self._cut_ratios, f"{script} {model}", str(ratio))
            pipe.expire(self._cut_ratios, _KEPT_S)
            pipe.execute()

    @translated
    def fix_packing_ratio(self, run_id: str, ratio: float, *, reduce: str = "") -> float:
        """Fix the bytes per token by which a reduce packs answers; return what was fixed first.

        Raises:
            UnknownRunError: There is no such run.
        """
        fixed = self._call(run_scripts.FIX_RATIO, [self._run(run_id)], [ratio, reduce])
        self._require(run_id, fixed)
        with suppress(ValueError):
            return float(fixed)
        return ratio


def _sums(data: bytes | None) -> TokenSums:
    with suppress(ValueError):
        return TokenSums.of_numbers([float(number) for number in (data or b"").split()])
    return TokenSums()
