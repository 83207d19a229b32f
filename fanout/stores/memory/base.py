"""What the parts of the memory store share: what it keeps, and how that is found."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from threading import RLock
from typing import TYPE_CHECKING

from fanout.core.errors import UnknownRunError
from fanout.core.state import StageRecord, Totals

if TYPE_CHECKING:
    from fanout.core.rate_limits import LimitState
    from fanout.core.records import Outcome, Shard
    from fanout.core.state import Parked, RunRecord, WorkerRecord
    from fanout.policy.outages import Breaker

__all__ = ["Claim", "MemoryBase", "StoredRun", "StoredShard", "StoredStage"]


@dataclass
class Claim:
    """That a holder makes the call of a branch."""

    token: str
    holder: str
    until: float


@dataclass
class StoredShard:
    """A shard, and what became of its branches, by position."""

    input: Shard
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    deliveries: Counter[int] = field(default_factory=Counter)
    claims: dict[int, Claim] = field(default_factory=dict)
    heals: int = 0
    next: int | None = None
    finished: bool = False


@dataclass
class StoredStage:
    """A stage, and its shards by number."""

    record: StageRecord = field(default_factory=StageRecord)
    shards: dict[int, StoredShard] = field(default_factory=dict)
    open: dict[int, int] = field(default_factory=dict)
    draining: set[int] = field(default_factory=set)
    opened: int = 0
    window: int = 0
    per_shard: int = 0
    cap: int = 0
    unknown: set[str] = field(default_factory=set)
    heals: int = 0
    reopened: set[int] = field(default_factory=set)


@dataclass
class StoredRun:
    """A run, and its stages by number."""

    spec: str
    record: RunRecord
    stages: dict[int, StoredStage] = field(default_factory=lambda: defaultdict(StoredStage))
    result: bytes | None = None
    is_paused: bool = False
    parked: set[Parked] = field(default_factory=set)


class MemoryBase:
    """The memory that a store keeps everything in, by name."""

    def __init__(self) -> None:
        self._lock = RLock()
        self._runs: dict[str, StoredRun] = {}
        # Those whose deletion has begun.
        self._deleted: dict[str, StoredRun] = {}
        self._notes: dict[str, tuple[bytes, float]] = {}
        self._locks: dict[str, tuple[str, float]] = {}
        self._workers: dict[str, tuple[WorkerRecord, float]] = {}
        self._totals = Totals()
        self._limits: dict[str, LimitState] = {}
        self._breakers: dict[str, Breaker] = {}
        self._holders: dict[str, float] = {}
        self._wire: int | None = None
        self._speakers: dict[str, float] = {}

    def _run(self, run_id: str) -> StoredRun:
        try:
            return self._runs[run_id]
        except KeyError:
            raise UnknownRunError(run_id) from None

    def _shard(self, run_id: str, stage: int, number: int) -> StoredShard:
        shard = self._run(run_id).stages[stage].shards.get(number)
        if shard is None:
            raise UnknownRunError(run_id)
        return shard

    def _is_held(self, claim: Claim) -> bool:
        now = time.monotonic()
        return self._holders.get(claim.holder, 0.0) > now and claim.until > now
