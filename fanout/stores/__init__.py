"""The run store: inputs, outcomes and the state of runs."""

from fanout.core.state import (
    BeginReply,
    BeginRequest,
    RecordReply,
    RecordRequest,
    RunRecord,
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
    "RecordReply",
    "RecordRequest",
    "RedisStore",
    "RunRecord",
    "StageLoad",
    "StageProgress",
    "StageRecord",
    "Totals",
    "WorkerRecord",
    "connect",
]
