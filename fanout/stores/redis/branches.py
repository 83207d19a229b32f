"""The branches of the Redis store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fanout.latency import bucket_of
from fanout.stores import codec
from fanout.stores.base import ALONE_AFTER
from fanout.stores.records import Begun, Parked, Recorded
from fanout.stores.redis.base import RedisBase, translated

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fanout.runs import Outcome

__all__ = ["RedisBranches"]


class RedisBranches(RedisBase):
    """See ``fanout.stores.base.Branches``."""

    @translated
    def take_parked(self, run_id: str) -> list[Parked]:
        """See Store."""
        key = f"{self._run(run_id)}:parked"
        with self._redis.pipeline() as pipe:
            pipe.smembers(key)
            pipe.delete(key)
            members, _ = pipe.execute()
        return [codec.decode_parked(member) for member in sorted(members)]

    @translated
    def begin(
        self,
        run_id: str,
        stage: int,
        number: int,
        position: int,
        *,
        token: str,
        holder: str = "",
        tries: int = 0,
        lasts_s: int = 0,
        feed: int = 0,
        is_alone: bool = False,
    ) -> Begun:
        """See Store."""
        run = self._run(run_id)
        keys = [run, *self._shard_keys(run_id, stage, number), f"{run}:parked", self._holders]
        parked = Parked(stage=stage, shard=number, position=position, feed=feed)
        args: list[Any] = [position, self._ttl_s, token, int(is_alone), ALONE_AFTER]
        args += [codec.encode_parked(parked), int(stage == 0), holder, tries, lasts_s]
        verdict, deliveries = self._begin(keys=keys, args=args)
        return Begun(verdict=verdict.decode(), deliveries=deliveries)

    @translated
    def unbegin(self, run_id: str, stage: int, number: int, position: int, *, token: str) -> None:
        """See Store."""
        self._unbegin(keys=[self._shard(run_id, stage, number, "state")], args=[position, token])

    @translated
    def record(
        self,
        run_id: str,
        stage: int,
        number: int,
        position: int,
        outcome: Outcome,
        *,
        feed: int = 0,
    ) -> Recorded:
        """See Store."""
        keys, args = self._record_call(run_id, stage, number, position, outcome, feed)
        first, following = self._record(keys=keys, args=args)
        return Recorded(first=bool(first), next=None if following < 0 else following)

    def _record_call(
        self, run_id: str, stage: int, number: int, position: int, outcome: Outcome, feed: int
    ) -> tuple[list[str], list[Any]]:
        keys = [
            self._run(run_id),
            self._stage(run_id, stage),
            *self._shard_keys(run_id, stage, number),
            self._totals,
        ]
        usage = outcome.usage
        counts = (usage.input_tokens, usage.output_tokens, usage.cost_usd)
        args = [position, codec.encode_outcome(outcome), self._ttl_s, feed, outcome.kind or ""]
        args += [usage.calls, *("" if count is None else count for count in counts)]
        took = bucket_of(outcome.elapsed_s) if outcome.attempts else -1
        return keys, [*args, took, outcome.elapsed_s]

    @translated
    def record_missing(
        self, run_id: str, stage: int, number: int, outcomes: Iterable[tuple[int, Outcome]]
    ) -> None:
        """See Store."""
        with self._redis.pipeline(transaction=False) as pipe:
            for position, outcome in outcomes:
                keys, args = self._record_call(run_id, stage, number, position, outcome, 0)
                self._record(keys=keys, args=args, client=pipe)
            pipe.execute()

    @translated
    def outcomes(self, run_id: str, stage: int, number: int) -> dict[int, Outcome]:
        """See Store."""
        with self._redis.pipeline() as pipe:
            pipe.get(self._shard(run_id, stage, number, "out"))
            pipe.hgetall(self._shard(run_id, stage, number, "live"))
            blob, live = pipe.execute()
        if blob is not None:
            return codec.decode_outcomes(blob)
        return {int(position): codec.decode_outcome(data) for position, data in live.items()}

    @translated
    def compact(self, run_id: str, stage: int, number: int, outcomes: dict[int, Outcome]) -> None:
        """See Store."""
        keys = [self._shard(run_id, stage, number, part) for part in ("live", "state", "out")]
        self._compact(keys=keys, args=[codec.encode_outcomes(outcomes), self._ttl_s])
