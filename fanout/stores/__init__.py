"""The run store: where inputs, outcomes and the state of runs live."""

from fanout.core.state import (
    BeginReply,
    BeginRequest,
    BeginVerdict,
    Grant,
    ParkedBranch,
    RecordReply,
    RecordRequest,
    RunRecord,
    SealReply,
    ShardState,
    StageLoad,
    StageProgress,
    StageRecord,
    Totals,
    WorkerRecord,
)
from fanout.stores.connection import connect
from fanout.stores.redis import RedisStore

__all__ = [
    "BeginReply",
    "BeginRequest",
    "BeginVerdict",
    "Grant",
    "ParkedBranch",
    "RecordReply",
    "RecordRequest",
    "RedisStore",
    "RunRecord",
    "SealReply",
    "ShardState",
    "StageLoad",
    "StageProgress",
    "StageRecord",
    "Totals",
    "WorkerRecord",
    "connect",
]
