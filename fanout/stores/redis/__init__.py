"""The run store, on a Redis-protocol server."""

from __future__ import annotations

from fanout.stores.redis.answer_cache import RedisAnswers
from fanout.stores.redis.batch_lanes import RedisBatchLanes
from fanout.stores.redis.branches import RedisBranches
from fanout.stores.redis.budgets import RedisBudgets
from fanout.stores.redis.fleet import RedisFleet
from fanout.stores.redis.groups import RedisGroups
from fanout.stores.redis.limits import RedisLimits
from fanout.stores.redis.runs import RedisRuns
from fanout.stores.redis.stages import RedisStages
from fanout.stores.redis.tokens import RedisTokens

__all__ = ["RedisStore"]


class RedisStore(
    RedisRuns,
    RedisStages,
    RedisGroups,
    RedisBranches,
    RedisBatchLanes,
    RedisFleet,
    RedisLimits,
    RedisTokens,
    RedisBudgets,
    RedisAnswers,
):
    """What a run needs remembered, on a Redis-protocol server.

    Every method is safe to call twice, from any process; threads may share a store.
    """
