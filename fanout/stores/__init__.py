"""The run store: a protocol, the real one on Redis, and one in memory for tests."""

from fanout.stores.base import Store
from fanout.stores.connection import connect
from fanout.stores.memory import MemoryStore
from fanout.stores.records import (
    Begun,
    Grant,
    Parked,
    Recorded,
    RunRecord,
    Sealed,
    ShardState,
    StageProgress,
    StageRecord,
    StageWindow,
    Totals,
    Verdict,
    WorkerRecord,
)
from fanout.stores.redis import RedisStore

__all__ = [
    "Begun",
    "Grant",
    "MemoryStore",
    "Parked",
    "Recorded",
    "RedisStore",
    "RunRecord",
    "Sealed",
    "ShardState",
    "StageProgress",
    "StageRecord",
    "StageWindow",
    "Store",
    "Totals",
    "Verdict",
    "WorkerRecord",
    "connect",
]
