"""The runs whose branches wait for batches: which are over, or late, and what views show of them."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from fanout.core.errors import StoredDataError, UnknownRunError
from fanout.core.gathered import RunBatch
from fanout.core.spec import stored_spec
from fanout.runs.lateness import late_steps_of
from fanout.system.logs import about
from workers.batching.lost_results import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fanout.core.gathered import BatchRecord
    from fanout.core.state import RunRecord
    from fanout.policy.lanes import BatchStep
    from fanout.stores import RedisStore

__all__ = ["WaitingRuns"]

# Seconds that the branches of a stopped run wait for what a cancelled batch has come to: from its
# cancellation, or from when it is first known to be in vain. To read results, or to find a batch that was
# perhaps made, takes longer.
_PATIENCE_S = 60.0
_LONG_PATIENCE_S = 600.0
# Seconds in which the provider is asked once more about a batch whose calls would be late.
_LAST_LOOK_S = 10.0

_log = logging.getLogger(__name__)


class WaitingRuns:
    """Looks at the runs with gathered branches, once in a while.

    Args:
        store: The runs and the batches.
        wait_s: Seconds for which gathered calls wait for further ones.
    """

    def __init__(self, store: RedisStore, *, wait_s: float) -> None:
        self._store = store
        self._wait_s = wait_s
        # Those whose branches no longer wait for batches.
        self.over: set[str] = set()
        # The batches whose results nobody waits for any more, even to count them.
        self.forgotten: set[int] = set()
        self._shown: dict[str, list[RunBatch]] = {}
        # When each batch was first seen that nobody waits for.
        self._unwanted_at: dict[int, float] = {}
        # When each batch was first seen whose calls would be late, and how far it was.
        self._last_looks: dict[int, tuple[float, tuple[int, int]]] = {}
        # The batches about which the provider is asked at once, before their calls are made anew.
        self.urgent: set[int] = set()

    @property
    def remembers(self) -> bool:
        """Whether views may still show batches of a run that waits for none."""
        return bool(self._shown)

    def look(
        self,
        batches: Sequence[BatchRecord],
        *,
        epoch: int,
        may_exist: Callable[[BatchRecord], bool],
    ) -> dict[int, bool]:
        """Release the branches of runs that are over or late; return which batches nobody waits for.

        Calls of these runs in batches that the provider cannot have are taken out of them.

        Args:
            batches: The batches, by number.
            epoch: Of the leadership.
            may_exist: Says whether the provider may have a batch. None is submitted meanwhile.

        Raises:
            BrokerError: The server does not answer.
        """
        of_batches = {batch.number: self._store.batch_runs(batch.number) for batch in batches}
        waiting = set(self._store.gathered_runs())
        runs = {run_id: self._run(run_id) for run_id in waiting.union(*of_batches.values())}
        self.over = {run_id for run_id, run in runs.items() if _is_over(run)}
        late = {
            run_id: steps
            for run_id, run in runs.items()
            if run is not None and run_id not in self.over and (steps := self._late_steps(run))
        }
        gone = self.over | {run_id for run_id, steps in late.items() if "gathered" in steps}
        free: set[str] = set()
        for batch in batches:
            if gone.intersection(of_batches[batch.number]) and not may_exist(batch):
                free |= self._unpack(epoch, batch.number, gone)
                of_batches[batch.number] = self._store.batch_runs(batch.number)
        now = self._store.now() if batches and (late or self.over) else 0.0
        given_up = self._given_up(batches, of_batches, late, now)
        unwanted = {
            number: all(run_id in self.over or run_id in given_up[number] for run_id in left)
            for number, left in of_batches.items()
            if left
        }
        self._unwanted_at = {
            number: self._unwanted_at.get(number, now)
            for number, is_so in unwanted.items()
            if is_so
        }
        self.forgotten = {
            number
            for number, left in of_batches.items()
            if unwanted.get(number) and waiting.isdisjoint(left)
        }
        for run_id in sorted(waiting):
            own = [batch for batch in batches if run_id in of_batches[batch.number]]
            if run_id in late:
                lost = {one.number for one in own if run_id in given_up[one.number]}
                self._promote(epoch, run_id, own, lost, late[run_id], free)
            self._look_at(epoch, run_id, runs[run_id], own)
            self._show(run_id, runs[run_id], own)
        for run_id in self._shown.keys() - waiting:
            if self._shown.pop(run_id):
                self._store.show_batches(run_id, [])
        return unwanted

    def _given_up(
        self,
        batches: Sequence[BatchRecord],
        of_batches: dict[int, dict[str, int]],
        late: dict[str, frozenset[BatchStep]],
        now: float,
    ) -> dict[int, set[str]]:
        """Return for each batch the runs that give it up; note which batches are to be asked about first."""
        given_up: dict[int, set[str]] = {batch.number: set() for batch in batches}
        looks, self._last_looks = self._last_looks, {}
        self.urgent = set()
        for batch in batches:
            step: BatchStep = "answered" if batch.stage == "landing" else "sent"
            runs = {run_id for run_id in of_batches[batch.number] if step in late.get(run_id, ())}
            if not runs:
                continue
            since, asked = looks.get(batch.number, (now, (batch.polls, batch.tries)))
            self._last_looks[batch.number] = since, asked
            was_asked = batch.stage != "submitted" or (batch.polls, batch.tries) != asked
            if step == "answered" or now >= since + _LAST_LOOK_S or was_asked:
                given_up[batch.number] = runs
            else:
                self.urgent.add(batch.number)
        return given_up

    def _unpack(self, epoch: int, number: int, run_ids: set[str]) -> set[str]:
        unpacked: set[str] = set()
        for page in self._store.members_left(number):
            some = [member for member in page if member.branch_id.run_id in run_ids]
            self._store.unpack(epoch, number, some)
            unpacked.update(member.item for member in some)
        return unpacked

    def _run(self, run_id: str) -> RunRecord | None:
        try:
            return self._store.run(run_id)
        except (UnknownRunError, StoredDataError):
            return None

    def _late_steps(self, run: RunRecord) -> frozenset[BatchStep]:
        if run.deadline_at is None:
            return frozenset()
        try:
            lane = stored_spec(self._store.spec(run.run_id)).lane
        except (UnknownRunError, StoredDataError):
            return frozenset()
        return (
            late_steps_of(self._store, run, wait_s=self._wait_s) if lane == "auto" else frozenset()
        )

    def _look_at(
        self,
        epoch: int,
        run_id: str,
        run: RunRecord | None,
        batches: list[BatchRecord],
    ) -> None:
        if run is None or not self._store.gathered(run_id):
            self._store.drop_gathered_run(run_id)
        elif run_id in self.over and not self._awaits_cancelled(run, batches):
            self._end_waiting(epoch, run_id, batches)

    def _awaits_cancelled(self, run: RunRecord, batches: list[BatchRecord]) -> bool:
        """Return whether the branches of a stopped run wait for what their batches have come to."""
        return any(
            run.read_at < self._waits_until(batch)
            for batch in batches
            if batch.number in self._unwanted_at
        )

    def _waits_until(self, batch: BatchRecord) -> float:
        if batch.stage == "submitted":
            return (batch.cancelled_at or self._unwanted_at[batch.number]) + _PATIENCE_S
        return self._unwanted_at[batch.number] + _LONG_PATIENCE_S

    def _end_waiting(self, epoch: int, run_id: str, batches: list[BatchRecord]) -> None:
        """Release all gathered branches of a run that is over."""
        for page in self._marks(run_id):
            bought = self._members(batches, page)
            for is_bought in (False, True):
                marks = [mark for mark in page if (mark[1] in bought) is is_bought]
                self._release(epoch, run_id, marks, is_bought=is_bought, promotes=False)

    def _promote(
        self,
        epoch: int,
        run_id: str,
        batches: list[BatchRecord],
        lost: set[int],
        late: frozenset[BatchStep],
        free: set[str],
    ) -> None:
        """Release the gathered branches of a run that would be late.

        Args:
            epoch: Of the leadership.
            run_id: The run.
            batches: Those with calls of the run.
            lost: The numbers of those that it gives up.
            late: Which of its calls would be late.
            free: Calls that were just taken out of batches.
        """
        given_up = [batch for batch in batches if batch.number in lost]
        kept = [batch for batch in batches if batch.number not in lost]
        # What is in no batch, nor waits for one, follows an identical call: as long as that is awaited.
        takes_all = "sent" in late and not kept
        count = 0
        for page in self._marks(run_id):
            bought, awaited = self._members(given_up, page), self._members(kept, page)
            count += self._release(
                epoch, run_id, [mark for mark in page if mark[1] in bought], is_bought=True
            )
            left = [mark for mark in page if mark[1] not in bought | awaited]
            if not takes_all:
                items = [item for _, item in left]
                loose = self._store.in_no_batch(items) if "gathered" in late else set()
                left = [mark for mark in left if mark[1] in loose | free]
            count += self._release(epoch, run_id, left, is_bought=False)
        if count:
            text = "%d branches no longer wait for their batches, to be in time"
            _log.info(text, count, extra=about(run_id))

    def _marks(self, run_id: str) -> Iterator[list[tuple[str, str]]]:
        with suppress(UnknownRunError):
            yield from self._store.gathered_marks(run_id)

    def _members(self, batches: list[BatchRecord], page: list[tuple[str, str]]) -> set[str]:
        items = [item for _, item in page]
        return {
            member.item
            for batch in batches
            for member in self._store.batch_members(batch.number, items)
        }

    def _release(
        self,
        epoch: int,
        run_id: str,
        marks: list[tuple[str, str]],
        *,
        is_bought: bool,
        promotes: bool = True,
    ) -> int:
        """Release gathered branches; ``is_bought`` says whether a provider may have their calls."""
        if not marks:
            return 0
        result = UNKNOWN if is_bought else b""
        with suppress(UnknownRunError):
            return self._store.release_gathered(
                epoch, run_id, marks, result=result, promotes=promotes
            )
        return 0

    def _show(self, run_id: str, run: RunRecord | None, batches: list[BatchRecord]) -> None:
        if run is None:
            self._shown.pop(run_id, None)
            return
        shown = [_view(batch, run.read_at) for batch in batches]
        before = self._shown.get(run_id)
        if shown or before:
            self._store.show_batches(run_id, shown)
        self._shown[run_id] = shown


def _is_over(run: RunRecord | None) -> bool:
    """Return whether the branches of a run are to make no call any more."""
    return run is None or run.has_ended or run.is_stopping


def _view(batch: BatchRecord, now: float) -> RunBatch:
    is_cancelling = batch.cancelled_at is not None and batch.stage == "submitted"
    return RunBatch(
        number=batch.number,
        batch_id=batch.batch_id,
        state="cancelling" if is_cancelling else batch.stage,
        calls=batch.calls,
        answered=batch.answered,
        age_s=round(now - batch.submitted_at, 1) if batch.submitted_at else None,
        problem=batch.problem,
    )
