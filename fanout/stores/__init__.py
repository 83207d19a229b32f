"""The run store: where inputs, outcomes and the state of runs live."""

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
from fanout.stores.connection import connect
from fanout.stores.redis import RedisStore

__all__ = [
    "Begun",
    "End",
    "Grant",
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
    "Totals",
    "Verdict",
    "WorkerRecord",
    "connect",
]
