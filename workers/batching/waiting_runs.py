"""The runs whose branches wait for batches: which are over, or late, and what views show of them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fanout.core.errors import StoredDataError, UnknownRunError
from fanout.core.gathered import RunBatch
from fanout.core.spec import stored_spec
from fanout.runs.lateness import run_is_late
from fanout.system.logs import about
from workers.batching.lost_results import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fanout.core.gathered import BatchRecord
    from fanout.core.state import RunRecord
    from fanout.stores import RedisStore

__all__ = ["WaitingRuns"]

# Seconds that the branches of a stopped run wait for what a cancelled batch has come to: from its
# cancellation, or from when it is first known to be in vain. To read results, or to find a batch that was
# perhaps made, takes longer.
_PATIENCE_S = 60.0
_LONG_PATIENCE_S = 600.0


_log = logging.getLogger(__name__)


class WaitingRuns:
    """Looks at the runs with gathered branches, once in a while.

    Args:
        store: The runs and the batches.
    """

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        # Those whose branches no longer wait for batches.
        self.over: set[str] = set()
        # The batches whose results nobody waits for any more, even to count them.
        self.forgotten: set[int] = set()
        self._shown: dict[str, list[RunBatch]] = {}
        # When each batch was first seen that nobody waits for.
        self._unwanted_at: dict[int, float] = {}

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
            run_id
            for run_id, run in runs.items()
            if run is not None and run_id not in self.over and self._is_late(run)
        }
        gone = self.over | late
        for batch in batches:
            if gone.intersection(of_batches[batch.number]) and not may_exist(batch):
                self._unpack(epoch, batch.number, gone)
                of_batches[batch.number] = self._store.batch_runs(batch.number)
        unwanted = {number: set(left) <= gone for number, left in of_batches.items() if left}
        now = self._store.now() if any(unwanted.values()) else 0.0
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
            self._look_at(epoch, run_id, runs[run_id], own, is_late=run_id in late)
            self._show(run_id, runs[run_id], own)
        for run_id in self._shown.keys() - waiting:
            if self._shown.pop(run_id):
                self._store.show_batches(run_id, [])
        return unwanted

    def _unpack(self, epoch: int, number: int, run_ids: set[str]) -> None:
        for page in self._store.members_left(number):
            some = [member for member in page if member.branch_id.run_id in run_ids]
            self._store.unpack(epoch, number, some)

    def _run(self, run_id: str) -> RunRecord | None:
        try:
            return self._store.run(run_id)
        except (UnknownRunError, StoredDataError):
            return None

    def _is_late(self, run: RunRecord) -> bool:
        if run.deadline_at is None:
            return False
        try:
            lane = stored_spec(self._store.spec(run.run_id)).lane
        except (UnknownRunError, StoredDataError):
            return False
        return lane == "auto" and run_is_late(self._store, run, is_submitted=True)

    def _look_at(
        self,
        epoch: int,
        run_id: str,
        run: RunRecord | None,
        batches: list[BatchRecord],
        *,
        is_late: bool,
    ) -> None:
        if run is None or not self._store.gathered(run_id):
            self._store.drop_gathered_run(run_id)
            return
        if is_late:
            count = self._release(epoch, run_id, batches, result=UNKNOWN, promotes=True)
            if count:
                text = "%d branches no longer wait for their batches, to be in time"
                _log.info(text, count, extra=about(run_id))
        elif run_id in self.over and not self._awaits_cancelled(run, batches):
            self._release(epoch, run_id, batches, result=UNKNOWN, promotes=False)

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

    def _release(
        self, epoch: int, run_id: str, batches: list[BatchRecord], *, result: bytes, promotes: bool
    ) -> int:
        """Release the gathered branches of a run; ``result`` is for those that a provider may have."""
        released = 0
        try:
            for page in self._store.gathered_marks(run_id):
                items = [item for _, item in page]
                bought = {
                    member.item
                    for batch in batches
                    for member in self._store.batch_members(batch.number, items)
                }
                for is_bought in (False, True):
                    marks = [mark for mark in page if (mark[1] in bought) is is_bought]
                    if marks:
                        released += self._store.release_gathered(
                            epoch,
                            run_id,
                            marks,
                            result=result if is_bought else b"",
                            promotes=promotes,
                        )
        except UnknownRunError:
            pass
        return released

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
