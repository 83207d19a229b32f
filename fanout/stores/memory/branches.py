"""The branches of the memory store."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from fanout.latency import bucket_of
from fanout.runs import Usage
from fanout.stores.base import ALONE_AFTER
from fanout.stores.codec import encode_parked
from fanout.stores.memory.base import Claim, MemoryBase
from fanout.stores.records import Begun, Parked, Recorded

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fanout.latency import Latency
    from fanout.runs import ErrorKind, Outcome
    from fanout.stores.memory.base import StoredRun, StoredShard, StoredStage
    from fanout.stores.records import Totals, Verdict

__all__ = ["MemoryBranches"]


class MemoryBranches(MemoryBase):
    """See ``fanout.stores.base.Branches``."""

    def take_parked(self, run_id: str) -> list[Parked]:
        """See Store."""
        with self._lock:
            run = self._run(run_id)
            taken, run.parked = run.parked, set()
            return sorted(taken, key=encode_parked)

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
            mine = Claim(token, holder, tries, time.monotonic() + lasts_s)
            if held and held.token != token and self._is_held(held) and held.tries >= tries:
                return Begun(verdict="held", deliveries=shard.deliveries[position])
            return _begun(shard, position, mine, is_alone=is_alone)

    def unbegin(self, run_id: str, stage: int, number: int, position: int, *, token: str) -> None:
        """See Store."""
        with self._lock:
            shard = self._shard(run_id, stage, number)
            claim = shard.claims.get(position)
            if claim is not None and claim.token == token:
                del shard.claims[position]
                shard.deliveries[position] -= 1

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
            self._totals = _counted(self._totals, outcome)
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


def _barred(run: StoredRun, branch: Parked) -> Verdict | None:
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


def _begun(shard: StoredShard, position: int, mine: Claim, *, is_alone: bool) -> Begun:
    deliveries = shard.deliveries[position]
    claim = shard.claims.get(position)
    if claim is not None and claim.token == mine.token:
        return Begun(verdict="go", deliveries=deliveries)
    if deliveries >= ALONE_AFTER and not is_alone:
        return Begun(verdict="suspect", deliveries=deliveries)
    shard.deliveries[position] += 1
    shard.claims[position] = mine
    return Begun(verdict="go", deliveries=deliveries + 1)


def _following(shard: StoredShard, feed: int) -> int | None:
    if not feed:
        return None
    following = shard.next or 0
    shard.next = following + 1
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
            # An answer of unknown cost makes the sum unknown; a call that failed does not.
            state.unknown |= {name} if outcome.ok else set()
        else:
            total[name] = (total[name] or 0) + added[name]
        if name in state.unknown:
            total[name] = None
    return Usage(**total)
