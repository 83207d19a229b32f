"""The run store on a Redis-protocol server: the real one."""

from __future__ import annotations

from fanout.stores.redis.branches import RedisBranches
from fanout.stores.redis.fleet import RedisFleet
from fanout.stores.redis.limits import RedisLimits
from fanout.stores.redis.runs import RedisRuns
from fanout.stores.redis.stages import RedisStages

__all__ = ["RedisStore"]


class RedisStore(RedisRuns, RedisStages, RedisBranches, RedisFleet, RedisLimits):
    """The run store on a Redis-protocol server. Safe to share between threads."""
