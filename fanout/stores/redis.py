"""The run store on a Redis-protocol server: the real one.

Keys, under ``{prefix}:run:{id}``: the run (a hash); ``:sN`` a stage (a hash) and ``:sN:open`` its
shards in flight; ``:sN:M:in`` the input of shard M, ``:live`` its outcomes while it is processed,
``:state`` its deliveries, ``:out`` its outcomes once it is finished; ``:result`` the aggregate;
``:parked`` branches that wait for a paused run to go on. ``:sN:sizes`` has each shard's first index
and count; ``:sN:reopened`` are the shards that a retry has taken back. ``{prefix}:runs`` are all
runs by age, ``{prefix}:active`` those that have not ended.
"""

from __future__ import annotations

import time
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import redis
from redis.exceptions import AuthenticationError, RedisError

from fanout.errors import BrokerError, UnknownRunError
from fanout.patience import PASSING_ERRORS
from fanout.runs import TERMINAL, ErrorKind, Outcome, RunStatus, Shard
from fanout.stores import codec, scripts
from fanout.stores.base import (
    ALONE_AFTER,
    Begun,
    Grant,
    Parked,
    Recorded,
    RunRecord,
    Sealed,
    ShardState,
    StageProgress,
    StageRecord,
)
from fanout.stores.connection import address_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from fanout.admission import Lanes

__all__ = ["RedisStore"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_FINAL = tuple(sorted(TERMINAL))

# Holders that have lapsed are remembered for an hour, as the server may be away for so long.
_REMEMBERED_S = 3_600


def _translated(method: Callable[_P, _R]) -> Callable[_P, _R]:
    """Turn the client's errors into BrokerError, with a line that a user can act on."""

    @wraps(method)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return method(*args, **kwargs)
        except RedisError as error:
            message = _explain(cast("RedisStore", args[0]), error)
            refused = isinstance(error, AuthenticationError)
            is_passing = isinstance(error, PASSING_ERRORS) and not refused
            raise BrokerError(message, is_passing=is_passing) from error

    return call


def _explain(store: RedisStore, error: RedisError) -> str:
    text = str(error)
    if isinstance(error, AuthenticationError) or "WRONGPASS" in text or "NOAUTH" in text:
        return (
            f"the broker at {store.address} refuses the credentials; check the user and password "
            "in FANOUT_BROKER_URL (redis://user:password@host:port/0)"
        )
    if isinstance(error, (redis.ConnectionError, redis.TimeoutError)):
        return (
            f"no broker answers at {store.address} ({text}); start a Redis server there, or set "
            "FANOUT_BROKER_URL or --broker-url to one"
        )
    if text.startswith(("OOM", "command not allowed when used memory")):
        return f"the broker at {store.address} is out of memory (maxmemory is reached)"
    return f"the broker at {store.address} refused a command: {text}"


class RedisStore:
    """The run store on a Redis-protocol server. Safe to share between threads."""

    def __init__(
        self, client: redis.Redis, *, prefix: str = "fanout", ttl_s: int = 604_800
    ) -> None:
        self._redis = client
        self._prefix = prefix
        self._ttl_s = ttl_s
        self._beat = client.register_script(scripts.BEAT)
        self._begin = client.register_script(scripts.BEGIN)
        self._record = client.register_script(scripts.RECORD)
        self._open = client.register_script(scripts.OPEN_SHARDS)
        self._put_shard = client.register_script(scripts.PUT_SHARD)
        self._compact = client.register_script(scripts.COMPACT)
        self._set_status = client.register_script(scripts.SET_STATUS)
        self._end_run = client.register_script(scripts.END_RUN)
        self._halt = client.register_script(scripts.HALT)
        self._reopen_run = client.register_script(scripts.REOPEN_RUN)
        self._unbegin = client.register_script(scripts.UNBEGIN)
        self._pause = client.register_script(scripts.PAUSE)
        self._lock = client.register_script(scripts.LOCK)
        self._seal = client.register_script(scripts.SEAL)
        self._reopen_shard = client.register_script(scripts.REOPEN_SHARD)

    @property
    def address(self) -> str:
        """Where the server is, without credentials."""
        return address_of(self._redis)

    @property
    def _active(self) -> str:
        return f"{self._prefix}:active"

    @property
    def _holders(self) -> str:
        return f"{self._prefix}:holders"

    def _run(self, run_id: str) -> str:
        return f"{self._prefix}:run:{run_id}"

    def _stage(self, run_id: str, stage: int) -> str:
        return f"{self._prefix}:run:{run_id}:s{stage}"

    def _shard(self, run_id: str, stage: int, number: int, part: str) -> str:
        return f"{self._prefix}:run:{run_id}:s{stage}:{number}:{part}"

    @_translated
    def create_run(
        self, run_id: str, *, spec: str, created_at: float, deadline_at: float | None = None
    ) -> None:
        """See Store."""
        key = self._run(run_id)
        fields = {"spec": spec, "status": RunStatus.ENQUEUING.value, "created_at": created_at}
        if deadline_at is not None:
            fields["deadline_at"] = deadline_at
        with self._redis.pipeline() as pipe:
            pipe.hset(key, mapping=cast("dict[Any, Any]", fields))
            pipe.expire(key, self._ttl_s)
            pipe.zadd(f"{self._prefix}:runs", {run_id: created_at})
            pipe.sadd(self._active, run_id)
            pipe.execute()

    @_translated
    def spec(self, run_id: str) -> str:
        """See Store."""
        spec = cast("bytes | None", self._redis.hget(self._run(run_id), "spec"))
        if spec is None:
            raise UnknownRunError(run_id)
        return spec.decode()

    @_translated
    def run(self, run_id: str) -> RunRecord:
        """See Store."""
        values = cast("list[bytes | None]", self._redis.hmget(self._run(run_id), codec.RUN_FIELDS))
        if values[0] is None:
            raise UnknownRunError(run_id)
        return codec.decode_run(run_id, values)

    def runs(self) -> Iterator[RunRecord]:
        """See Store."""
        for run_id in self._run_ids():
            try:
                yield self.run(run_id)
            except UnknownRunError:
                self._forget(run_id)

    @_translated
    def _run_ids(self) -> list[str]:
        ids = cast("list[bytes]", self._redis.zrange(f"{self._prefix}:runs", 0, -1, desc=True))
        return [run_id.decode() for run_id in ids]

    @_translated
    def _forget(self, run_id: str) -> None:
        self._redis.zrem(f"{self._prefix}:runs", run_id)
        self._redis.srem(self._active, run_id)

    @_translated
    def active_runs(self) -> list[str]:
        """See Store."""
        return sorted(run_id.decode() for run_id in self._members(self._active))

    def _members(self, key: str) -> set[bytes]:
        return cast("set[bytes]", self._redis.smembers(key))

    @_translated
    def stage(self, run_id: str, stage: int) -> StageRecord:
        """See Store."""
        fields = cast("dict[bytes, bytes]", self._redis.hgetall(self._stage(run_id, stage)))
        return codec.decode_stage(fields)

    @_translated
    def set_status(self, run_id: str, status: RunStatus, *, stage: int | None = None) -> bool:
        """See Store."""
        args: list[Any] = [status, "" if stage is None else stage, *_FINAL]
        return bool(self._set_status(keys=[self._run(run_id)], args=args))

    @_translated
    def end_run(
        self, run_id: str, status: RunStatus, *, ended_at: float, error: str | None = None
    ) -> bool:
        """See Store."""
        args: list[Any] = [status, ended_at, error or "", self._ttl_s, run_id, *_FINAL]
        return bool(self._end_run(keys=[self._run(run_id), self._active], args=args))

    @_translated
    def halt(self, run_id: str, status: RunStatus, *, error: str | None = None) -> bool:
        """See Store."""
        args: list[Any] = [status, error or "", *_FINAL]
        return bool(self._halt(keys=[self._run(run_id)], args=args))

    @_translated
    def pause(self, run_id: str) -> bool:
        """See Store."""
        return bool(self._pause(keys=[self._run(run_id)], args=["1", *_FINAL]))

    @_translated
    def unpause(self, run_id: str) -> bool:
        """See Store."""
        return bool(self._pause(keys=[self._run(run_id)], args=["0", *_FINAL]))

    @_translated
    def take_parked(self, run_id: str) -> list[Parked]:
        """See Store."""
        key = f"{self._run(run_id)}:parked"
        with self._redis.pipeline() as pipe:
            pipe.smembers(key)
            pipe.delete(key)
            members, _ = pipe.execute()
        return [codec.decode_parked(member) for member in sorted(members)]

    @_translated
    def reopen_run(self, run_id: str, *, retry: frozenset[ErrorKind]) -> bool:
        """See Store."""
        stage = self._stage(run_id, 0)
        run = self._run(run_id)
        keys = [run, stage, f"{stage}:open", f"{run}:result", self._active, f"{run}:parked"]
        args: list[Any] = [self._ttl_s, run_id, codec.encode_kinds(retry), *_FINAL]
        if not self._reopen_run(keys=[*keys, f"{stage}:reopened"], args=args):
            return False
        for number in range(1, self.run(run_id).base_stage + 1):
            self._delete_shards(run_id, number)
        return True

    @_translated
    def reopen_shard(
        self,
        run_id: str,
        stage: int,
        number: int,
        *,
        kept: dict[int, Outcome],
        dropped: list[Outcome],
    ) -> bool:
        """See Store."""
        live, out, state = self._shard_keys(run_id, stage, number)
        key = self._stage(run_id, stage)
        args: list[Any] = [number, self._ttl_s, len(kept)]
        for position, outcome in kept.items():
            args += [position, codec.encode_outcome(outcome)]
        args += [outcome.kind or "" for outcome in dropped]
        keys = [key, f"{key}:reopened", out, live, state]
        return bool(self._reopen_shard(keys=keys, args=args))

    @_translated
    def is_finished(self, run_id: str, stage: int, number: int) -> bool:
        """See Store."""
        return bool(self._redis.exists(self._shard(run_id, stage, number, "out")))

    @_translated
    def delete_run(self, run_id: str) -> None:
        """See Store."""
        record = self.run(run_id)
        # Newest stage first and the run last: a deletion that dies half-way can be done again.
        for stage in range(record.last_stage + 1, -1, -1):
            self._delete_shards(run_id, stage)
            self._redis.delete(self._stage(run_id, stage))
        self._redis.delete(*(f"{self._run(run_id)}{part}" for part in ("", ":result", ":parked")))
        self._forget(run_id)

    def _delete_shards(self, run_id: str, stage: int) -> None:
        for number in range(self.stage(run_id, stage).shards):
            parts = ("in", "live", "state", "out")
            self._redis.delete(*(self._shard(run_id, stage, number, part) for part in parts))
        rest = ("open", "sizes", "reopened")
        self._redis.delete(*(f"{self._stage(run_id, stage)}:{part}" for part in rest))

    @_translated
    def put_shard(self, run_id: str, stage: int, number: int, shard: Shard) -> bool:
        """See Store."""
        keys = [
            self._run(run_id),
            self._stage(run_id, stage),
            self._shard(run_id, stage, number, "in"),
            f"{self._stage(run_id, stage)}:sizes",
        ]
        blob = codec.encode_shard(shard)
        args: list[Any] = [blob, number, shard.count, self._ttl_s, shard.first, *_FINAL]
        answer = self._put_shard(keys=keys, args=args)
        if answer < 0:
            raise UnknownRunError(run_id)
        return bool(answer)

    @_translated
    def shard(self, run_id: str, stage: int, number: int) -> Shard:
        """See Store."""
        blob = cast("bytes | None", self._redis.get(self._shard(run_id, stage, number, "in")))
        if blob is None:
            raise UnknownRunError(run_id)
        return codec.decode_shard(blob)

    @_translated
    def indices(self, run_id: str, stage: int, number: int) -> range:
        """See Store."""
        size = self._redis.hget(f"{self._stage(run_id, stage)}:sizes", str(number))
        if size is None:
            raise UnknownRunError(run_id)
        return codec.decode_size(cast("bytes", size))

    @_translated
    def set_lanes(self, run_id: str, stage: int, lanes: Lanes) -> None:
        """See Store."""
        fields = {"window": lanes.window, "lane": lanes.per_shard, "cap": lanes.cap}
        self._redis.hset(self._stage(run_id, stage), mapping=cast("dict[Any, Any]", fields))

    @_translated
    def seal_stage(self, run_id: str, stage: int) -> Sealed:
        """See Store."""
        keys = [self._run(run_id), self._stage(run_id, stage)]
        shards, first = self._seal(keys=keys, args=[self._ttl_s])
        if shards < 0:
            raise UnknownRunError(run_id)
        return Sealed(shards=shards, first=bool(first))

    @_translated
    def open_shards(
        self, run_id: str, stage: int, *, window: int, finished: int | None = None
    ) -> list[Grant]:
        """See Store."""
        key = self._stage(run_id, stage)
        args: list[Any] = [window, -1 if finished is None else finished, self._ttl_s]
        flat = cast("list[int]", self._open(keys=[key, f"{key}:open"], args=args))
        pairs = zip(flat[::2], flat[1::2], strict=True)
        return [Grant(shard=shard, lanes=lanes) for shard, lanes in pairs]

    @_translated
    def start_shard(self, run_id: str, stage: int, number: int, *, published: int) -> bool:
        """See Store."""
        key = self._shard(run_id, stage, number, "state")
        with self._redis.pipeline() as pipe:
            pipe.hsetnx(key, "next", published)
            pipe.expire(key, self._ttl_s)
            is_first, _ = pipe.execute()
        return bool(is_first)

    @_translated
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

    @_translated
    def unbegin(self, run_id: str, stage: int, number: int, position: int, *, token: str) -> None:
        """See Store."""
        self._unbegin(keys=[self._shard(run_id, stage, number, "state")], args=[position, token])

    @_translated
    def beat(self, holder: str, *, ttl_s: float) -> None:
        """See Store."""
        self._beat(keys=[self._holders], args=[holder, ttl_s, _REMEMBERED_S])

    @_translated
    def progress(self, run_id: str, stage: int) -> StageProgress:
        """See Store."""
        key = self._stage(run_id, stage)
        with self._redis.pipeline() as pipe:
            pipe.hmget(key, "written", "sealed", "opened", "heals")
            pipe.hgetall(f"{key}:open")
            (written, sealed, opened, heals), lanes = pipe.execute()
        numbers = sorted(int(number) for number in lanes)
        with self._redis.pipeline(transaction=False) as pipe:
            for number in numbers:
                live, out, state = self._shard_keys(run_id, stage, number)
                pipe.hlen(live)
                pipe.hlen(state)
                pipe.exists(out)
            marks = pipe.execute()
        return StageProgress(
            written=int(written or 0),
            sealed=sealed is not None,
            opened=int(opened or 0),
            open={int(number): int(lane) for number, lane in lanes.items()},
            marks={n: tuple(marks[3 * i : 3 * i + 3]) for i, n in enumerate(numbers)},
            heals=int(heals or 0),
        )

    @_translated
    def shard_state(self, run_id: str, stage: int, number: int) -> ShardState:
        """See Store."""
        live, out, state = self._shard_keys(run_id, stage, number)
        with self._redis.pipeline() as pipe:
            pipe.hget(f"{self._stage(run_id, stage)}:sizes", str(number))
            pipe.hgetall(state)
            pipe.exists(out)
            pipe.hkeys(live)
            pipe.time()
            pipe.zrange(self._holders, 0, -1, withscores=True)
            size, fields, finished, ended, (now_s, now_us), holders = pipe.execute()
        if size is None:
            raise UnknownRunError(run_id)
        indices = codec.decode_size(size)
        published = fields.get(b"next")
        now = now_s + now_us / 1e6
        alive = {holder.decode() for holder, until in holders if until > now}
        return ShardState(
            first=indices.start,
            count=len(indices),
            published=None if published is None else min(int(published), len(indices)),
            finished=bool(finished),
            ended=frozenset(int(position) for position in ended),
            held=codec.held_positions(fields, alive, now),
            heals=int(fields.get(b"heals", 0)),
        )

    @_translated
    def incomplete(self, run_id: str, stage: int) -> list[int]:
        """See Store."""
        key = f"{self._stage(run_id, stage)}:sizes"
        sizes = cast("dict[bytes, bytes]", self._redis.hgetall(key))
        lengths = {int(number): len(codec.decode_size(size)) for number, size in sizes.items()}
        with self._redis.pipeline(transaction=False) as pipe:
            for number in lengths:
                live, out, _ = self._shard_keys(run_id, stage, number)
                pipe.exists(out)
                pipe.hlen(live)
            counts = pipe.execute()
        counted = zip(lengths, counts[::2], counts[1::2], strict=True)
        return sorted(n for n, finished, ended in counted if not finished and ended < lengths[n])

    @_translated
    def adopt(self, run_id: str, stage: int, numbers: Iterable[int]) -> None:
        """See Store."""
        key = f"{self._stage(run_id, stage)}:open"
        with self._redis.pipeline() as pipe:
            for number in numbers:
                pipe.hsetnx(key, str(number), "0")
            pipe.expire(key, self._ttl_s)
            pipe.execute()

    @_translated
    def healed(self, run_id: str, stage: int, number: int | None = None) -> None:
        """See Store."""
        if number is None:
            self._redis.hincrby(self._stage(run_id, stage), "heals", 1)
            return
        key = self._shard(run_id, stage, number, "state")
        with self._redis.pipeline() as pipe:
            pipe.hincrby(key, "heals", 1)
            pipe.expire(key, self._ttl_s)
            pipe.execute()

    @_translated
    def take_lock(self, name: str, holder: str, *, ttl_s: int) -> bool:
        """See Store."""
        return bool(self._lock(keys=[f"{self._prefix}:lock:{name}"], args=[holder, ttl_s]))

    def _shard_keys(self, run_id: str, stage: int, number: int) -> list[str]:
        return [self._shard(run_id, stage, number, part) for part in ("live", "out", "state")]

    @_translated
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
        ]
        usage = outcome.usage
        counts = (usage.input_tokens, usage.output_tokens, usage.cost_usd)
        args = [position, codec.encode_outcome(outcome), self._ttl_s, feed, outcome.kind or ""]
        return keys, [*args, usage.calls, *("" if count is None else count for count in counts)]

    @_translated
    def record_missing(
        self, run_id: str, stage: int, number: int, outcomes: Iterable[tuple[int, Outcome]]
    ) -> None:
        """See Store."""
        with self._redis.pipeline(transaction=False) as pipe:
            for position, outcome in outcomes:
                keys, args = self._record_call(run_id, stage, number, position, outcome, 0)
                self._record(keys=keys, args=args, client=pipe)
            pipe.execute()

    @_translated
    def outcomes(self, run_id: str, stage: int, number: int) -> dict[int, Outcome]:
        """See Store."""
        with self._redis.pipeline() as pipe:
            pipe.get(self._shard(run_id, stage, number, "out"))
            pipe.hgetall(self._shard(run_id, stage, number, "live"))
            blob, live = pipe.execute()
        if blob is not None:
            return codec.decode_outcomes(blob)
        return {int(position): codec.decode_outcome(data) for position, data in live.items()}

    @_translated
    def compact(self, run_id: str, stage: int, number: int, outcomes: dict[int, Outcome]) -> None:
        """See Store."""
        keys = [self._shard(run_id, stage, number, part) for part in ("live", "state", "out")]
        self._compact(keys=keys, args=[codec.encode_outcomes(outcomes), self._ttl_s])

    @_translated
    def put_result(self, run_id: str, result: bytes) -> None:
        """See Store."""
        self._redis.set(f"{self._run(run_id)}:result", result, nx=True, ex=self._ttl_s)

    @_translated
    def result(self, run_id: str) -> bytes | None:
        """See Store."""
        return cast("bytes | None", self._redis.get(f"{self._run(run_id)}:result"))

    @_translated
    def put_note(self, key: str, note: bytes, *, ttl_s: int) -> None:
        """See Store."""
        self._redis.set(f"{self._prefix}:note:{key}", note, ex=ttl_s)

    @_translated
    def take_note(self, key: str) -> bytes | None:
        """See Store."""
        return cast("bytes | None", self._redis.getdel(f"{self._prefix}:note:{key}"))

    @_translated
    def worker_alive(self, name: str, *, concurrency: int, ttl_s: float) -> None:
        """See Store."""
        key = f"{self._prefix}:workers"
        with self._redis.pipeline() as pipe:
            pipe.zremrangebyscore(key, "-inf", time.time())
            pipe.zadd(key, {f"{concurrency}:{name}": time.time() + ttl_s})
            pipe.execute()

    @_translated
    def worker_gone(self, name: str) -> None:
        """See Store."""
        key = f"{self._prefix}:workers"
        members = cast("list[bytes]", self._redis.zrange(key, 0, -1))
        stale = [member for member in members if member.decode().partition(":")[2] == name]
        if stale:
            self._redis.zrem(key, *stale)

    @_translated
    def workers(self) -> dict[str, int]:
        """See Store."""
        key = f"{self._prefix}:workers"
        members = cast("list[bytes]", self._redis.zrangebyscore(key, time.time(), "+inf"))
        parts = (member.decode().partition(":") for member in members)
        return {name: int(concurrency) for concurrency, _, name in parts}

    @_translated
    def ping(self) -> None:
        """See Store."""
        self._redis.ping()

    def close(self) -> None:
        """See Store."""
        self._redis.close()
