"""What processes tell one another through the Redis store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from fanout.stores import codec
from fanout.stores.redis.base import RedisBase, seconds, translated

if TYPE_CHECKING:
    from fanout.stores.records import Totals, WorkerRecord

__all__ = ["RedisFleet"]

# Who has fallen silent is remembered for an hour, as the server may be away for so long.
_REMEMBERED_S = 3_600


class RedisFleet(RedisBase):
    """See ``fanout.stores.base.Fleet``."""

    @translated
    def beat(self, holder: str, *, ttl_s: float) -> None:
        """See Store."""
        self._beat(keys=[self._holders], args=[holder, ttl_s, _REMEMBERED_S])

    @translated
    def take_lock(self, name: str, holder: str, *, ttl_s: int) -> bool:
        """See Store."""
        return bool(self._lock(keys=[f"{self._prefix}:lock:{name}"], args=[holder, ttl_s]))

    @translated
    def put_note(self, key: str, note: bytes, *, ttl_s: int) -> None:
        """See Store."""
        self._redis.set(f"{self._prefix}:note:{key}", note, ex=ttl_s)

    @translated
    def take_note(self, key: str) -> bytes | None:
        """See Store."""
        return cast("bytes | None", self._redis.getdel(f"{self._prefix}:note:{key}"))

    @property
    def _workers(self) -> tuple[str, str]:
        return f"{self._prefix}:workers", f"{self._prefix}:worker-records"

    @translated
    def worker_alive(self, worker: WorkerRecord, *, ttl_s: float) -> None:
        """See Store."""
        # Until when it is known, and when it said so, must be read off one clock.
        record = codec.encode_worker(worker, ttl_s)
        self._alive(keys=self._workers, args=[worker.name, record, ttl_s, _REMEMBERED_S])

    @translated
    def worker_gone(self, name: str) -> None:
        """See Store."""
        known, records = self._workers
        with self._redis.pipeline() as pipe:
            pipe.zrem(known, name)
            pipe.hdel(records, name)
            pipe.execute()

    @translated
    def workers(self) -> list[WorkerRecord]:
        """See Store."""
        known, records = self._workers
        with self._redis.pipeline() as pipe:
            pipe.time()
            pipe.zrange(known, 0, -1, withscores=True)
            pipe.hgetall(records)
            time, until, said = pipe.execute()
        now = seconds(time)
        live = ((name, lapses) for name, lapses in until if lapses > now and name in said)
        return [codec.decode_worker(said[name], lapses) for name, lapses in sorted(live)]

    @translated
    def totals(self) -> Totals:
        """See Store."""
        return codec.decode_totals(cast("dict[bytes, bytes]", self._redis.hgetall(self._totals)))

    @translated
    def claim_wire(
        self, version: int, *, holder: str, ttl_s: float, needs_room: bool = False
    ) -> int:
        """See Store."""
        keys = [self._wire, f"{self._wire}:holders", self._active]
        args: list[Any] = [version, holder, ttl_s, self._run("")]
        if needs_room:
            # Not by the script: one that has freed something may then write, however full it is.
            self._redis.set(f"{self._wire}:room", "", px=1)
        return int(cast("int", self._claim_wire(keys=keys, args=args)))

    @translated
    def release_wire(self, holder: str) -> None:
        """See Store."""
        self._redis.zrem(f"{self._wire}:holders", holder)

    @translated
    def wire(self) -> int | None:
        """See Store."""
        version = cast("bytes | None", self._redis.get(self._wire))
        return None if version is None else int(version)

    @translated
    def now(self) -> float:
        """See Store."""
        return seconds(self._redis.time())

    @translated
    def ping(self) -> None:
        """See Store."""
        self._redis.ping()

    def close(self) -> None:
        """See Store."""
        self._redis.close()
