"""What processes tell one another through the Redis store."""

from __future__ import annotations

import time
from typing import cast

from fanout.stores.redis.base import RedisBase, translated

__all__ = ["RedisFleet"]

# Holders that have lapsed are remembered for an hour, as the server may be away for so long.
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

    @translated
    def worker_alive(self, name: str, *, concurrency: int, ttl_s: float) -> None:
        """See Store."""
        key = f"{self._prefix}:workers"
        with self._redis.pipeline() as pipe:
            pipe.zremrangebyscore(key, "-inf", time.time())
            pipe.zadd(key, {f"{concurrency}:{name}": time.time() + ttl_s})
            pipe.execute()

    @translated
    def worker_gone(self, name: str) -> None:
        """See Store."""
        key = f"{self._prefix}:workers"
        members = cast("list[bytes]", self._redis.zrange(key, 0, -1))
        stale = [member for member in members if member.decode().partition(":")[2] == name]
        if stale:
            self._redis.zrem(key, *stale)

    @translated
    def workers(self) -> dict[str, int]:
        """See Store."""
        key = f"{self._prefix}:workers"
        members = cast("list[bytes]", self._redis.zrangebyscore(key, time.time(), "+inf"))
        parts = (member.decode().partition(":") for member in members)
        return {name: int(concurrency) for concurrency, _, name in parts}

    @translated
    def ping(self) -> None:
        """See Store."""
        self._redis.ping()

    def close(self) -> None:
        """See Store."""
        self._redis.close()
