"""The run store: a protocol, the real one on Redis, and one in memory for tests."""

from fanout.core.state import (
    Begun,
    End,
    Grant,
    Parked,
    Recorded,
    RunRecord,
    Sealed,
    ShardState,
    StageProgress,
    StageRecord,
    StageWindow,
    Start,
    Totals,
    Verdict,
    WorkerRecord,
)
from fanout.stores.base import Store
from fanout.stores.connection import connect
from fanout.stores.memory import MemoryStore
from fanout.stores.redis import RedisStore

__all__ = [
    "Begun",
    "End",
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
    "Start",
    "Store",
    "Totals",
    "Verdict",
    "WorkerRecord",
    "connect",
]
