"""The stages and shards of the memory store."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from fanout.core.state import (
    Grant,
    Sealed,
    ShardState,
    StageProgress,
    StageRecord,
    StageWindow,
)
from fanout.stores.base import MOST_WINDOWS
from fanout.stores.memory.base import MemoryBase, StoredShard

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fanout.core.records import Outcome, Shard
    from fanout.policy.admission import Lanes
    from fanout.stores.memory.base import StoredStage

__all__ = ["MemoryStages"]


class MemoryStages(MemoryBase):
    """See ``fanout.stores.base.Stages``."""

    def stage(self, run_id: str, stage: int) -> StageRecord:
        """See Store."""
        run = self._runs.get(run_id)
        return run.stages[stage].record if run else StageRecord()

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
            state.shards[number] = StoredShard(old.input, outcomes=dict(kept))
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
                state.shards[number] = StoredShard(shard)
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
        self,
        run_id: str,
        stage: int,
        *,
        window: int,
        finished: int | None = None,
        draining: tuple[int, int] | None = None,
    ) -> list[Grant]:
        """See Store."""
        with self._lock:
            state = self._run(run_id).stages[stage]
            if finished is not None:
                state.open.pop(finished, None)
                state.draining.discard(finished)
            if draining is not None and draining[0] in state.open:
                number, left = draining
                state.draining.add(number)
                state.open[number] = min(state.open[number], left)
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

    def advance_shard(self, run_id: str, stage: int, number: int, *, published: int) -> None:
        """See Store."""
        with self._lock:
            shard = self._shard(run_id, stage, number)
            shard.next = max(shard.next or 0, published)

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

    def window(self, run_id: str, stage: int) -> StageWindow:
        """See Store."""
        with self._lock:
            run = self._runs.get(run_id)
            if run is None:
                return StageWindow()
            state = run.stages[stage]
            return StageWindow(
                open=len(state.open),
                waiting=state.record.shards - state.opened,
                lanes_used=sum(state.open.values()),
                lanes_limit=state.cap,
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
                lanes = min(state.per_shard, state.cap - sum(state.open.values()))
                if not state.cap:
                    state.open.setdefault(number, 0)
                elif lanes > 0:
                    state.open.setdefault(number, lanes)

    def healed(self, run_id: str, stage: int, number: int | None = None) -> None:
        """See Store."""
        with self._lock:
            healed = (
                self._run(run_id).stages[stage]
                if number is None
                else self._shard(run_id, stage, number)
            )
            healed.heals += 1
            times = self._totals.healed + 1
            self._totals = msgspec.structs.replace(self._totals, healed=times)


def _next_grant(state: StoredStage, window: int) -> Grant | None:
    used = sum(state.open.values())
    is_capped = state.cap and used >= state.cap
    is_full = len(state.open) - len(state.draining) >= window
    is_full = is_full or len(state.open) >= window * MOST_WINDOWS
    if state.opened >= state.record.shards or is_full or is_capped:
        return None
    lanes = min(state.per_shard, state.cap - used) if state.cap else 0
    grant = Grant(shard=state.opened, lanes=lanes)
    state.open[state.opened] = lanes
    state.opened += 1
    return grant


def _mark(shard: StoredShard) -> tuple[int, ...]:
    return len(shard.outcomes), len(shard.deliveries), int(shard.finished)
