"""The branches of the memory store."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from fanout.core.latency import bucket_of
from fanout.core.records import Usage
from fanout.core.state import Begun, Parked, Recorded
from fanout.stores.base import ALONE_AFTER
from fanout.stores.codec import encode_parked
from fanout.stores.memory.base import Claim, MemoryBase

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fanout.core.latency import Latency
    from fanout.core.records import ErrorKind, Outcome
    from fanout.core.state import End, Start, Totals, Verdict
    from fanout.stores.memory.base import StoredRun, StoredShard, StoredStage

__all__ = ["MemoryBranches"]


class MemoryBranches(MemoryBase):
    """See ``fanout.stores.base.Branches``."""

    def take_parked(self, run_id: str) -> list[Parked]:
        """See Store."""
        with self._lock:
            run = self._runs.get(run_id)
            if run is None:
                return []
            taken, run.parked = run.parked, set()
            return sorted(taken, key=encode_parked)

    def begin(self, start: Start) -> Begun:
        """See Store."""
        with self._lock:
            run = self._runs.get(start.run_id)
            if run is None:
                return Begun(verdict="gone")
            shard = self._shard(start.run_id, start.stage, start.shard)
            if shard.finished or start.position in shard.outcomes:
                return Begun(verdict="done")
            barred = _barred(run, start)
            if barred is not None:
                return Begun(verdict=barred)
            return self._begun(run, shard, start)

    def _begun(self, run: StoredRun, shard: StoredShard, start: Start) -> Begun:
        held = shard.claims.get(start.position)
        deliveries = shard.deliveries[start.position]
        if held and held.token == start.token:
            return Begun(verdict="go", deliveries=deliveries)
        if run.is_paused:
            parked = Parked(
                stage=start.stage, shard=start.shard, position=start.position, feed=start.feed
            )
            run.parked.add(parked)
            return Begun(verdict="paused")
        if held and self._bars(held, start):
            return Begun(verdict="held", deliveries=deliveries)
        if deliveries >= ALONE_AFTER and not start.is_alone:
            return Begun(verdict="suspect", deliveries=deliveries)
        until = time.monotonic() + start.lasts_s
        shard.deliveries[start.position] += 1
        shard.claims[start.position] = Claim(start.token, start.holder, until)
        return Begun(verdict="go", deliveries=deliveries + 1)

    def _bars(self, claim: Claim, start: Start) -> bool:
        """Say whether a claim keeps a delivery from its branch: see BEGIN of the Redis store."""
        lapses, now = self._holders.get(claim.holder), time.monotonic()
        if lapses is None or claim.until <= now:
            return False
        own = self._holders.get(start.holder, 0.0)
        return lapses > now or own - start.beats_for_s <= lapses

    def begin_all(self, starts: Sequence[Start]) -> list[Begun]:
        """See Store."""
        return [self.begin(start) for start in starts]

    def unbegin(
        self,
        run_id: str,
        stage: int,
        number: int,
        position: int,
        *,
        token: str,
        counts: bool = False,
    ) -> None:
        """See Store."""
        with self._lock:
            run = self._runs.get(run_id)
            shard = run.stages[stage].shards.get(number) if run else None
            claim = shard.claims.get(position) if shard else None
            if shard and claim and claim.token == token:
                del shard.claims[position]
                shard.deliveries[position] -= not counts

    def record(self, end: End) -> Recorded:
        """See Store."""
        with self._lock:
            run = self._runs.get(end.run_id)
            if run is None:
                return Recorded(first=False)
            shard = self._shard(end.run_id, end.stage, end.shard)
            if shard.finished or end.position in shard.outcomes:
                return Recorded(first=False)
            shard.outcomes[end.position] = end.outcome
            _count(run.stages[end.stage], end.outcome)
            self._totals = _counted(self._totals, end.outcome)
            following = _following(shard, end.feed)
            return Recorded(first=True, next=following, ended=len(shard.outcomes))

    def record_all(self, ends: Sequence[End]) -> list[Recorded]:
        """See Store."""
        return [self.record(end) for end in ends]

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


def _barred(run: StoredRun, start: Start) -> Verdict | None:
    """Return why no branch of a run may be called any more."""
    if run.record.halt:
        return "halted"
    deadline = run.record.deadline_at
    if deadline is not None and start.stage == 0 and time.time() >= deadline:
        return "expired"
    return None


def _following(shard: StoredShard, feed: int) -> int | None:
    if not feed:
        return None
    following = shard.next or 0
    while following < feed and following in shard.outcomes:
        following += 1
    shard.next = min(following + 1, feed)
    return following if following < feed else None


def _count(state: StoredStage, outcome: Outcome) -> None:
    record = state.record
    state.record = msgspec.structs.replace(
        record,
        succeeded=record.succeeded + outcome.ok,
        failed=record.failed + (not outcome.ok),
        errors=_errors(record.errors, outcome),
        usage=_add_usage(state, outcome),
        latency=_latency(record.latency, outcome),
    )


def _counted(totals: Totals, outcome: Outcome) -> Totals:
    return msgspec.structs.replace(
        totals,
        succeeded=totals.succeeded + outcome.ok,
        errors=_errors(totals.errors, outcome),
        usage=_sum_of_known(totals.usage, outcome.usage),
        latency=_latency(totals.latency, outcome),
    )


def _errors(errors: dict[ErrorKind, int], outcome: Outcome) -> dict[ErrorKind, int]:
    if outcome.kind is None:
        return errors
    return {**errors, outcome.kind: errors.get(outcome.kind, 0) + 1}


def _latency(latency: Latency, outcome: Outcome) -> Latency:
    if not outcome.attempts:
        return latency
    return latency.plus(bucket_of(outcome.elapsed_s), outcome.elapsed_s)


def _sum_of_known(total: Usage, added: Usage) -> Usage:
    pairs = ((name, value, getattr(added, name)) for name, value in total.to_dict().items())
    return Usage(**{name: old if new is None else (old or 0) + new for name, old, new in pairs})


def _add_usage(state: StoredStage, outcome: Outcome) -> Usage:
    total = state.record.usage.to_dict()
    added = outcome.usage.to_dict()
    total["calls"] += added["calls"]
    for name in ("input_tokens", "output_tokens", "cost_usd"):
        if added[name] is None:
            # A call of unknown cost makes the sum unknown; a branch without a call does not.
            state.unknown |= {name} if outcome.ok or added["calls"] else set()
        else:
            total[name] = (total[name] or 0) + added[name]
        if name in state.unknown:
            total[name] = None
    return Usage(**total)
