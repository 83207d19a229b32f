"""The run store in memory: for tests, and to see what the store does without a server."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from threading import RLock
from typing import TYPE_CHECKING

import msgspec

from fanout.errors import UnknownRunError
from fanout.runs import ErrorKind, Outcome, RunStatus, Shard, Usage
from fanout.stores.base import (
    ALONE_AFTER,
    Begun,
    Grant,
    Parked,
    Recorded,
    RunRecord,
    Sealed,
    ShardState,
    StageProgress,
    StageRecord,
)
from fanout.stores.codec import encode_parked

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fanout.admission import Lanes
    from fanout.stores.base import Verdict

__all__ = ["MemoryStore"]


@dataclass
class _Claim:
    token: str
    holder: str
    tries: int
    until: float


@dataclass
class _Shard:
    input: Shard
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    deliveries: Counter[int] = field(default_factory=Counter)
    claims: dict[int, _Claim] = field(default_factory=dict)
    heals: int = 0
    next: int | None = None
    finished: bool = False


@dataclass
class _Stage:
    record: StageRecord = field(default_factory=StageRecord)
    shards: dict[int, _Shard] = field(default_factory=dict)
    open: dict[int, int] = field(default_factory=dict)
    opened: int = 0
    window: int = 0
    per_shard: int = 0
    cap: int = 0
    unknown: set[str] = field(default_factory=set)
    heals: int = 0
    reopened: set[int] = field(default_factory=set)


@dataclass
class _Run:
    spec: str
    record: RunRecord
    stages: dict[int, _Stage] = field(default_factory=lambda: defaultdict(_Stage))
    result: bytes | None = None
    is_paused: bool = False
    parked: set[Parked] = field(default_factory=set)


class MemoryStore:
    """The run store in the memory of one process. Nothing expires but notes and workers."""

    def __init__(self) -> None:
        self._lock = RLock()
        self._runs: dict[str, _Run] = {}
        self._notes: dict[str, tuple[bytes, float]] = {}
        self._locks: dict[str, tuple[str, float]] = {}
        self._workers: dict[str, tuple[int, float]] = {}
        self._holders: dict[str, float] = {}

    def _run(self, run_id: str) -> _Run:
        try:
            return self._runs[run_id]
        except KeyError:
            raise UnknownRunError(run_id) from None

    def _shard(self, run_id: str, stage: int, number: int) -> _Shard:
        shard = self._run(run_id).stages[stage].shards.get(number)
        if shard is None:
            raise UnknownRunError(run_id)
        return shard

    def create_run(
        self, run_id: str, *, spec: str, created_at: float, deadline_at: float | None = None
    ) -> None:
        """See Store."""
        record = RunRecord(
            run_id=run_id,
            status=RunStatus.ENQUEUING,
            created_at=created_at,
            deadline_at=deadline_at,
        )
        with self._lock:
            self._runs[run_id] = _Run(spec, record)

    def spec(self, run_id: str) -> str:
        """See Store."""
        return self._run(run_id).spec

    def run(self, run_id: str) -> RunRecord:
        """See Store."""
        run = self._run(run_id)
        if run.is_paused and not run.record.has_ended:
            return msgspec.structs.replace(run.record, status=RunStatus.PAUSED)
        return run.record

    def active_runs(self) -> list[str]:
        """See Store."""
        return sorted(run_id for run_id, run in self._runs.items() if not run.record.has_ended)

    def runs(self) -> Iterator[RunRecord]:
        """See Store."""
        records = [self.run(run_id) for run_id in self._runs]
        yield from sorted(records, key=lambda record: record.created_at, reverse=True)

    def stage(self, run_id: str, stage: int) -> StageRecord:
        """See Store."""
        run = self._runs.get(run_id)
        return run.stages[stage].record if run else StageRecord()

    def set_status(self, run_id: str, status: RunStatus, *, stage: int | None = None) -> bool:
        """See Store."""
        with self._lock:
            run = self._runs.get(run_id)
            if run is None or run.record.has_ended:
                return False
            number = max(run.record.stage, stage or 0)
            run.record = msgspec.structs.replace(run.record, status=status, stage=number)
            return True

    def end_run(
        self, run_id: str, status: RunStatus, *, ended_at: float, error: str | None = None
    ) -> bool:
        """See Store."""
        with self._lock:
            run = self._runs.get(run_id)
            if run is None or run.record.has_ended:
                return False
            run.record = msgspec.structs.replace(
                run.record, status=status, ended_at=ended_at, error=run.record.error or error
            )
            return True

    def halt(self, run_id: str, status: RunStatus, *, error: str | None = None) -> bool:
        """See Store."""
        with self._lock:
            run = self._runs.get(run_id)
            if run is None or run.record.has_ended or run.record.halt:
                return False
            error = error or run.record.error
            run.record = msgspec.structs.replace(run.record, halt=status, error=error)
            return True

    def pause(self, run_id: str) -> bool:
        """See Store."""
        with self._lock:
            run = self._runs.get(run_id)
            if run is None or run.is_paused or run.record.has_ended or run.record.halt:
                return False
            run.is_paused = True
            return True

    def unpause(self, run_id: str) -> bool:
        """See Store."""
        with self._lock:
            run = self._runs.get(run_id)
            was_paused = run is not None and run.is_paused
            if run is not None:
                run.is_paused = False
            return was_paused

    def take_parked(self, run_id: str) -> list[Parked]:
        """See Store."""
        with self._lock:
            run = self._run(run_id)
            taken, run.parked = run.parked, set()
            return sorted(taken, key=encode_parked)

    def reopen_run(self, run_id: str, *, retry: frozenset[ErrorKind]) -> bool:
        """See Store."""
        with self._lock:
            run = self._run(run_id)
            if not run.record.has_ended:
                return False
            run.record = RunRecord(
                run_id=run_id,
                status=RunStatus.RUNNING,
                created_at=run.record.created_at,
                base_stage=run.record.last_stage,
                retry=retry,
            )
            for number, stage in run.stages.items():
                if number:
                    stage.shards.clear()
            run.stages[0].open, run.stages[0].opened, run.result = {}, 0, None
            run.stages[0].heals, run.is_paused, run.parked = 0, False, set()
            run.stages[0].reopened = set()
            return True

    def reopen_shard(
        self,
        run_id: str,
        stage: int,
        number: int,
        *,
        kept: dict[int, Outcome],
        dropped: list[Outcome],
    ) -> bool:
        """See Store."""
        with self._lock:
            old = self._shard(run_id, stage, number)
            state = self._run(run_id).stages[stage]
            if number in state.reopened:
                return False
            state.reopened.add(number)
            state.shards[number] = _Shard(old.input, outcomes=dict(kept))
            errors = Counter(state.record.errors)
            errors.subtract(outcome.kind for outcome in dropped if outcome.kind)
            state.record = msgspec.structs.replace(
                state.record,
                failed=state.record.failed - len(dropped),
                errors={kind: count for kind, count in errors.items() if count},
            )
            return True

    def is_finished(self, run_id: str, stage: int, number: int) -> bool:
        """See Store."""
        return self._shard(run_id, stage, number).finished

    def delete_run(self, run_id: str) -> None:
        """See Store."""
        with self._lock:
            self._run(run_id)
            del self._runs[run_id]

    def put_shard(self, run_id: str, stage: int, number: int, shard: Shard) -> bool:
        """See Store."""
        with self._lock:
            run = self._run(run_id)
            state = run.stages[stage]
            if run.record.halt or run.record.has_ended or state.record.sealed:
                return False
            if number == state.record.shards:
                state.record = msgspec.structs.replace(
                    state.record, shards=number + 1, total=state.record.total + shard.count
                )
                state.shards[number] = _Shard(shard)
            return True

    def shard(self, run_id: str, stage: int, number: int) -> Shard:
        """See Store."""
        return self._shard(run_id, stage, number).input

    def indices(self, run_id: str, stage: int, number: int) -> range:
        """See Store."""
        shard = self._shard(run_id, stage, number).input
        return range(shard.first, shard.first + shard.count)

    def set_lanes(self, run_id: str, stage: int, lanes: Lanes) -> None:
        """See Store."""
        with self._lock:
            state = self._run(run_id).stages[stage]
            state.window, state.per_shard, state.cap = lanes.window, lanes.per_shard, lanes.cap

    def seal_stage(self, run_id: str, stage: int) -> Sealed:
        """See Store."""
        with self._lock:
            state = self._run(run_id).stages[stage]
            is_first = not state.record.sealed
            state.record = msgspec.structs.replace(state.record, sealed=True)
            return Sealed(shards=state.record.shards, first=is_first)

    def open_shards(
        self, run_id: str, stage: int, *, window: int, finished: int | None = None
    ) -> list[Grant]:
        """See Store."""
        with self._lock:
            state = self._run(run_id).stages[stage]
            if finished is not None:
                state.open.pop(finished, None)
            granted: list[Grant] = []
            while (grant := _next_grant(state, state.window or window)) is not None:
                granted.append(grant)
            return granted

    def start_shard(self, run_id: str, stage: int, number: int, *, published: int) -> bool:
        """See Store."""
        with self._lock:
            shard = self._shard(run_id, stage, number)
            is_first = shard.next is None
            if is_first:
                shard.next = published
            return is_first

    def begin(
        self,
        run_id: str,
        stage: int,
        number: int,
        position: int,
        *,
        token: str,
        holder: str = "",
        tries: int = 0,
        lasts_s: int = 0,
        feed: int = 0,
        is_alone: bool = False,
    ) -> Begun:
        """See Store."""
        with self._lock:
            run = self._runs.get(run_id)
            if run is None:
                return Begun(verdict="gone")
            shard = self._shard(run_id, stage, number)
            if shard.finished or position in shard.outcomes:
                return Begun(verdict="done")
            barred = _barred(run, Parked(stage=stage, shard=number, position=position, feed=feed))
            if barred is not None:
                return Begun(verdict=barred)
            held = shard.claims.get(position)
            mine = _Claim(token, holder, tries, time.monotonic() + lasts_s)
            if held and held.token != token and self._is_held(held) and held.tries >= tries:
                return Begun(verdict="held", deliveries=shard.deliveries[position])
            return _begun(shard, position, mine, is_alone=is_alone)

    def _is_held(self, claim: _Claim) -> bool:
        now = time.monotonic()
        return self._holders.get(claim.holder, 0.0) > now and claim.until > now

    def unbegin(self, run_id: str, stage: int, number: int, position: int, *, token: str) -> None:
        """See Store."""
        with self._lock:
            shard = self._shard(run_id, stage, number)
            claim = shard.claims.get(position)
            if claim is not None and claim.token == token:
                del shard.claims[position]
                shard.deliveries[position] -= 1

    def beat(self, holder: str, *, ttl_s: float) -> None:
        """See Store."""
        with self._lock:
            now = time.monotonic()
            until = self._holders.get(holder)
            if until is not None and now > until - ttl_s / 3:
                for other, other_until in self._holders.items():
                    if other_until >= until - ttl_s:
                        self._holders[other] = now + ttl_s
            self._holders[holder] = now + ttl_s

    def progress(self, run_id: str, stage: int) -> StageProgress:
        """See Store."""
        with self._lock:
            run = self._runs.get(run_id)
            if run is None:
                return StageProgress()
            state = run.stages[stage]
            return StageProgress(
                written=state.record.shards,
                sealed=state.record.sealed,
                opened=state.opened,
                open=dict(state.open),
                marks={number: _mark(state.shards[number]) for number in state.open},
                heals=state.heals,
            )

    def shard_state(self, run_id: str, stage: int, number: int) -> ShardState:
        """See Store."""
        with self._lock:
            shard = self._shard(run_id, stage, number)
            count = shard.input.count
            return ShardState(
                first=shard.input.first,
                count=count,
                published=None if shard.next is None else min(shard.next, count),
                finished=shard.finished,
                ended=frozenset() if shard.finished else frozenset(shard.outcomes),
                held=frozenset(at for at, claim in shard.claims.items() if self._is_held(claim)),
                heals=shard.heals,
            )

    def incomplete(self, run_id: str, stage: int) -> list[int]:
        """See Store."""
        with self._lock:
            shards = self._run(run_id).stages[stage].shards.items()
            return sorted(
                number
                for number, shard in shards
                if not shard.finished and len(shard.outcomes) < shard.input.count
            )

    def adopt(self, run_id: str, stage: int, numbers: Iterable[int]) -> None:
        """See Store."""
        with self._lock:
            state = self._run(run_id).stages[stage]
            for number in numbers:
                state.open.setdefault(number, 0)

    def healed(self, run_id: str, stage: int, number: int | None = None) -> None:
        """See Store."""
        with self._lock:
            healed = (
                self._run(run_id).stages[stage]
                if number is None
                else self._shard(run_id, stage, number)
            )
            healed.heals += 1

    def take_lock(self, name: str, holder: str, *, ttl_s: int) -> bool:
        """See Store."""
        with self._lock:
            other, until = self._locks.get(name, (holder, 0.0))
            if other != holder and until > time.monotonic():
                return False
            self._locks[name] = (holder, time.monotonic() + ttl_s)
            return True

    def record(
        self,
        run_id: str,
        stage: int,
        number: int,
        position: int,
        outcome: Outcome,
        *,
        feed: int = 0,
    ) -> Recorded:
        """See Store."""
        with self._lock:
            run = self._runs.get(run_id)
            if run is None:
                return Recorded(first=False)
            shard = self._shard(run_id, stage, number)
            if shard.finished or position in shard.outcomes:
                return Recorded(first=False)
            shard.outcomes[position] = outcome
            _count(run.stages[stage], outcome)
            return Recorded(first=True, next=_following(shard, feed))

    def record_missing(
        self, run_id: str, stage: int, number: int, outcomes: Iterable[tuple[int, Outcome]]
    ) -> None:
        """See Store."""
        for position, outcome in outcomes:
            self.record(run_id, stage, number, position, outcome)

    def outcomes(self, run_id: str, stage: int, number: int) -> dict[int, Outcome]:
        """See Store."""
        with self._lock:
            return dict(self._shard(run_id, stage, number).outcomes)

    def compact(self, run_id: str, stage: int, number: int, outcomes: dict[int, Outcome]) -> None:
        """See Store."""
        with self._lock:
            shard = self._shard(run_id, stage, number)
            if not shard.finished:
                shard.outcomes, shard.finished = dict(outcomes), True

    def put_result(self, run_id: str, result: bytes) -> None:
        """See Store."""
        with self._lock:
            run = self._run(run_id)
            run.result = result if run.result is None else run.result

    def result(self, run_id: str) -> bytes | None:
        """See Store."""
        run = self._runs.get(run_id)
        return run.result if run else None

    def put_note(self, key: str, note: bytes, *, ttl_s: int) -> None:
        """See Store."""
        self._notes[key] = (note, time.monotonic() + ttl_s)

    def take_note(self, key: str) -> bytes | None:
        """See Store."""
        note, until = self._notes.pop(key, (None, 0.0))
        return note if until > time.monotonic() else None

    def worker_alive(self, name: str, *, concurrency: int, ttl_s: float) -> None:
        """See Store."""
        self._workers[name] = (concurrency, time.monotonic() + ttl_s)

    def worker_gone(self, name: str) -> None:
        """See Store."""
        self._workers.pop(name, None)

    def workers(self) -> dict[str, int]:
        """See Store."""
        now = time.monotonic()
        return {name: number for name, (number, until) in self._workers.items() if until > now}

    def ping(self) -> None:
        """See Store."""

    def close(self) -> None:
        """See Store."""


def _next_grant(state: _Stage, window: int) -> Grant | None:
    used = sum(state.open.values())
    is_capped = state.cap and used >= state.cap
    if state.opened >= state.record.shards or len(state.open) >= window or is_capped:
        return None
    lanes = min(state.per_shard, state.cap - used) if state.cap else 0
    grant = Grant(shard=state.opened, lanes=lanes)
    state.open[state.opened] = lanes
    state.opened += 1
    return grant


def _barred(run: _Run, branch: Parked) -> Verdict | None:
    """Return why no branch of a run may begin; park it where the run is paused."""
    if run.record.halt:
        return "halted"
    deadline = run.record.deadline_at
    if deadline is not None and branch.stage == 0 and time.time() >= deadline:
        return "expired"
    if run.is_paused:
        run.parked.add(branch)
        return "paused"
    return None


def _begun(shard: _Shard, position: int, mine: _Claim, *, is_alone: bool) -> Begun:
    deliveries = shard.deliveries[position]
    claim = shard.claims.get(position)
    if claim is not None and claim.token == mine.token:
        return Begun(verdict="go", deliveries=deliveries)
    if deliveries >= ALONE_AFTER and not is_alone:
        return Begun(verdict="suspect", deliveries=deliveries)
    shard.deliveries[position] += 1
    shard.claims[position] = mine
    return Begun(verdict="go", deliveries=deliveries + 1)


def _mark(shard: _Shard) -> tuple[int, ...]:
    return len(shard.outcomes), len(shard.deliveries), int(shard.finished)


def _following(shard: _Shard, feed: int) -> int | None:
    if not feed:
        return None
    following = shard.next or 0
    shard.next = following + 1
    return following if following < feed else None


def _count(state: _Stage, outcome: Outcome) -> None:
    record = state.record
    errors = dict(record.errors)
    if outcome.kind is not None:
        errors[outcome.kind] = errors.get(outcome.kind, 0) + 1
    state.record = msgspec.structs.replace(
        record,
        succeeded=record.succeeded + outcome.ok,
        failed=record.failed + (not outcome.ok),
        errors=errors,
        usage=_add_usage(state, outcome),
    )


def _add_usage(state: _Stage, outcome: Outcome) -> Usage:
    total = state.record.usage.to_dict()
    added = outcome.usage.to_dict()
    total["calls"] += added["calls"]
    for name in ("input_tokens", "output_tokens", "cost_usd"):
        if added[name] is None:
            # An answer of unknown cost makes the sum unknown; a call that failed does not.
            state.unknown |= {name} if outcome.ok else set()
        else:
            total[name] = (total[name] or 0) + added[name]
        if name in state.unknown:
            total[name] = None
    return Usage(**total)
