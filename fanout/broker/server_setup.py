"""Loads fanout's functions into a server, once for each version of fanout."""

from __future__ import annotations

from typing import TYPE_CHECKING

import redis

from fanout.core.errors import BrokerError
from fanout.stores.functions import load, missing
from fanout.stores.redis import (
    answer_scripts,
    batch_scripts,
    branch_scripts,
    budget_scripts,
    chord_scripts,
    fleet_scripts,
    group_scripts,
    join_scripts,
    passage_scripts,
    run_scripts,
    stage_scripts,
    turn_scripts,
)

if TYPE_CHECKING:
    from types import ModuleType

_OURS = (
    answer_scripts, batch_scripts, branch_scripts, budget_scripts, chord_scripts, fleet_scripts,
    group_scripts, join_scripts, passage_scripts, run_scripts, stage_scripts, turn_scripts,
)  # fmt: skip

__all__ = ["all_scripts", "count_missing", "load_functions"]


def all_scripts() -> list[str]:
    """Return every script that clients, workers and Flower run on the server."""
    from celery.backends import redis as celery_redis
    from kombu.transport import redis as kombu_redis
    from redis.lock import Lock

    ours = [_constants(module) for module in _OURS]
    theirs = [
        chord_scripts.count_of_run(celery_redis.CHORD_PART_RETURN_LUA),
        celery_redis.CHORD_CLEANUP_LUA,
        celery_redis.CHORD_CLAIM_EXTEND_LUA,
        kombu_redis.REFRESH_BINDING,
        kombu_redis.SWEEP_BINDINGS,
        Lock.LUA_RELEASE_SCRIPT,
        Lock.LUA_EXTEND_SCRIPT,
        Lock.LUA_REACQUIRE_SCRIPT,
    ]
    return [*(source for found in ours for source in found), *theirs]


def _constants(module: ModuleType) -> list[str]:
    values = (getattr(module, name) for name in module.__all__)
    return [value for value in values if isinstance(value, str)]


def load_functions(client: redis.Redis) -> int:
    """Load all functions; return their number.

    Raises:
        BrokerError: The user may not load functions, or the server has none.
    """
    sources = all_scripts()
    try:
        load(client, sources)
    except redis.RedisError as error:
        raise BrokerError(f"the functions cannot be loaded: {error}") from error
    return len(sources)


def count_missing(client: redis.Redis) -> int:
    """Return how many functions the server lacks."""
    return missing(client, all_scripts())
