"""The reaper: finds runs that make no progress, and repeats lost steps.

It runs in the worker that holds its lock (workers.consumer.reaper), and on demand
(``Client.heal``). It repeats a step only if it was missing twice, some seconds apart.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from fanout.broker.fleet_version import foreign_run_problem
from fanout.broker.inspection import messages_of_shard, messages_of_stage
from fanout.core.errors import BrokerError, StorageError, StoredDataError, UnknownRunError
from fanout.core.ids import ShardId, StageId
from fanout.core.records import ErrorKind, Outcome, RunStatus
from fanout.core.state import RecordRequest
from fanout.policy.healing import Heal, Remedy, heal_shard, heal_stage, heal_unsealed
from fanout.runs.enqueue import close_stopped_input, delete, fleet_window, unpark
from fanout.system.logs import about

if TYPE_CHECKING:
    from collections.abc import Callable

    from fanout.broker.inspection import MessageReader
    from fanout.broker.publisher import Publisher
    from fanout.core.state import RunRecord, StageProgress
    from fanout.stores import RedisStore

__all__ = ["MAX_HEALS", "Reaper"]

# A message that is lost this often has a cause that healing does not remove.
MAX_HEALS = 5

# Seconds in which a message that moves between two places has arrived.
_LOOK_AGAIN_S = 1.0
# Healing one step may reveal that the next is missing; later sweeps heal further ones.
_MAX_LOOKS = 5
# Seconds between two sweeps of the files of expired runs, which are not urgent.
_FILES_S = 300.0

# The statuses of a run once all shards of its stage are written.
_SEALED = (RunStatus.RUNNING, RunStatus.REDUCING)

_log = logging.getLogger(__name__)


class Reaper:
    """Heals the runs of a store. A sweep is cheap if all runs make progress.

    Args:
        store: The runs.
        publisher: Publishes lost messages again.
        messages: Reads the messages in the broker.
        stall_s: Seconds without progress after which a shard is checked closely.
        on_end: Called with a run that had to be ended.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        store: RedisStore,
        publisher: Publisher,
        messages: MessageReader,
        *,
        stall_s: float,
        on_end: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._publisher = publisher
        self._messages = messages
        self._stall_s = stall_s
        self._on_end = on_end
        self._clock = clock
        self._marks: dict[ShardId | StageId, tuple[object, float]] = {}
        self._suspected: dict[ShardId | StageId, Remedy] = {}
        self._seen: set[ShardId | StageId] = set()
        # Of the runs of a sweep: what is wrong with a run is not of one that was retried since.
        self._openings: dict[str, float] = {}
        self._broken: set[str] = set()
        self._files_due_at = clock()

    def heal_now(self, *, wait: Callable[[float], object] = time.sleep) -> int:
        """Sweep until no step is missing twice in a row.

        Returns:
            The number of repeated steps.

        Raises:
            BrokerError: The server does not answer.
        """
        healed = self.sweep()
        for _ in range(_MAX_LOOKS):
            if not self._suspected:
                break
            wait(_LOOK_AGAIN_S)
            healed += self.sweep()
        return healed

    def sweep(self) -> int:
        """Check all runs that have not ended; return the number of repeated steps.

        Raises:
            BrokerError: The server does not answer.
        """
        self._messages.give_turns()
        stalled: dict[ShardId | StageId, StageProgress] = {}
        self._seen.clear()
        self._openings.clear()
        for run_id in self._store.active_runs():
            try:
                stalled.update(self._look_at(run_id))
            except UnknownRunError:
                self._forget(run_id)
            except (BrokerError, StoredDataError) as error:
                if getattr(error, "is_passing", False):
                    raise
                # A user of the server may have written it: it must not hold up other runs.
                self._log_broken(run_id, error)
        # Shards that were not checked this time have ended: a long run has thousands.
        self._marks = {key: mark for key, mark in self._marks.items() if key in self._seen}
        self._suspected = {k: remedy for k, remedy in self._suspected.items() if k in self._seen}
        self._sweep_files()
        return self._treat(stalled) if stalled else 0

    def _look_at(self, run_id: str) -> dict[ShardId | StageId, StageProgress]:
        run = self._store.run(run_id)
        self._openings[run_id] = run.opening
        problem = foreign_run_problem(run.wire)
        if problem is not None and not run.has_ended:
            self._end(run_id, problem)
            return {}
        close_stopped_input(self._store, self._publisher, run)
        return self._stalled(run)

    def _log_broken(self, run_id: str, error: Exception) -> None:
        if run_id not in self._broken:
            self._broken.add(run_id)
            _log.warning("run %s cannot be looked after: %s", run_id, error)

    def _end(self, run_id: str, problem: str) -> None:
        is_first = self._store.end_run(
            run_id,
            RunStatus.FAILED,
            ended_at=self._store.now(),
            error=problem,
            opening=self._openings[run_id],
        )
        if is_first and self._on_end is not None:
            self._on_end(run_id)

    def _sweep_files(self) -> None:
        if self._clock() < self._files_due_at:
            return
        self._files_due_at = self._clock() + _FILES_S
        try:
            count = self._store.sweep_files()
        except StorageError as error:
            _log.warning("files of runs that are gone stay for now: %s", error)
        else:
            if count:
                _log.info("deleted the files of %d runs that are gone", count)

    def _forget(self, run_id: str) -> None:
        try:
            # The process that deletes it has died, or is still deleting.
            delete(self._store, self._publisher, run_id)
        except UnknownRunError:
            # It has expired: ending it removes it from the active runs.
            self._store.end_run(run_id, RunStatus.FAILED, ended_at=self._store.now())

    def _stalled(self, run: RunRecord) -> dict[ShardId | StageId, StageProgress]:
        if run.has_ended:
            return {}
        if run.status is RunStatus.PAUSED and not _is_over(run):
            # No progress is expected: parked branches have no message.
            return {}
        unpark(self._store, self._publisher, run.run_id)
        stalled: dict[ShardId | StageId, StageProgress] = {}
        for stage in run.open_stages:
            stalled |= self._stalled_of(StageId(run.run_id, stage))
        return stalled

    def _stalled_of(self, stage_id: StageId) -> dict[ShardId | StageId, StageProgress]:
        progress = self._store.progress(stage_id)
        marks: dict[ShardId | StageId, object] = {
            stage_id.shard(shard): mark for shard, mark in progress.marks.items()
        }
        if not progress.open:
            marks[stage_id] = (progress.written, progress.sealed, progress.opened)
        self._seen.update(marks)
        return {key: progress for key, mark in marks.items() if self._is_stalled(key, mark)}

    def _is_stalled(self, key: ShardId | StageId, mark: object) -> bool:
        now = self._clock()
        before, since = self._marks.get(key, (None, now))
        if before != mark:
            self._marks[key] = (mark, now)
            self._suspected.pop(key, None)
            return self._stall_s <= 0
        return now - since >= self._stall_s

    def _treat(self, stalled: dict[ShardId | StageId, StageProgress]) -> int:
        task_ids = self._messages.task_ids()
        healed = 0
        for key, progress in stalled.items():
            try:
                remedy = self._remedy(key, progress, task_ids.get(key.run_id, set()))
                if remedy.heal is Heal.NOTHING:
                    self._suspected.pop(key, None)
                    # Nothing is missing: wait until the next close check.
                    self._marks[key] = (self._marks[key][0], self._clock())
                elif self._suspected.get(key) == remedy:
                    self._heal(key, remedy)
                    healed += 1
                else:
                    self._suspected[key] = remedy
            except UnknownRunError:
                continue
        return healed

    def _remedy(
        self, key: ShardId | StageId, progress: StageProgress, task_ids: set[str]
    ) -> Remedy:
        if isinstance(key, StageId):
            messages = messages_of_stage(task_ids, key)
            if not progress.sealed and self._must_be_sealed(key):
                # Of a chain of calls, the step that writes the next one is lost; else records are.
                goes_on = key.stage > 0 and progress.written > 0
                return heal_unsealed(progress, goes_on=goes_on, max_heals=MAX_HEALS)
            incomplete = [] if progress.open else self._store.incomplete(key)
            return heal_stage(progress, messages, incomplete=incomplete, max_heals=MAX_HEALS)
        messages = messages_of_shard(task_ids, key)
        try:
            state = self._store.shard_state(key)
        except UnknownRunError:
            # Raises again if the run is unknown, and not only the shard.
            self._store.run(key.run_id)
            return Remedy(heal=Heal.FAIL)
        return heal_shard(state, messages, max_heals=MAX_HEALS)

    def _must_be_sealed(self, stage_id: StageId) -> bool:
        run = self._store.run(stage_id.run_id)
        # A later stage is still being written.
        return run.status in _SEALED and stage_id.stage <= run.stage

    def _heal(self, key: ShardId | StageId, remedy: Remedy) -> None:
        del self._suspected[key]
        del self._marks[key]
        where = f"stage {key.stage}"
        if isinstance(key, ShardId):
            where = f"shard {key.shard} of {where}"
        of_what = f" of {len(remedy.positions)} branches" if remedy.positions else ""
        text = "run %s, %s: healing by %s%s"
        _log.warning(text, key.run_id, where, remedy.heal.value, of_what, extra=about(key))
        self._store.healed(key)
        if remedy.heal is Heal.FAIL:
            message = f"{where} could not be brought to its end: see the logs of the workers"
            self._end(key.run_id, message)
        elif isinstance(key, StageId):
            self._heal_stage(key, remedy)
        else:
            self._heal_shard(key, remedy)

    def _heal_stage(self, stage_id: StageId, remedy: Remedy) -> None:
        if remedy.heal is Heal.AGGREGATE:
            self._publisher.aggregate(stage_id)
        elif remedy.heal is Heal.GO_ON:
            self._publisher.aggregate(StageId(stage_id.run_id, 0))
        elif remedy.heal is Heal.ADOPT:
            self._store.adopt(stage_id, remedy.positions)
        else:
            window = fleet_window(self._store)
            self._publisher.expand(stage_id, self._store.open_shards(stage_id, window=window))

    def _heal_shard(self, shard_id: ShardId, remedy: Remedy) -> None:
        if remedy.heal is Heal.EXPAND:
            self._publisher.expand(shard_id.stage_id, [shard_id.shard])
        elif remedy.heal is Heal.COLLECT:
            self._publisher.collect(shard_id)
        elif remedy.heal is Heal.LOSE:
            self._lose(shard_id, remedy.positions)
        else:
            self._publisher.branches(shard_id, remedy.positions)

    def _lose(self, shard_id: ShardId, positions: tuple[int, ...]) -> None:
        indices = self._store.indices(shard_id)
        message = f"its message was lost {MAX_HEALS} times"
        now = time.time()
        requests = []
        for at in positions:
            lost = Outcome(index=indices[at], kind=ErrorKind.LOST, message=message, ended_at=now)
            opening = self._openings.get(shard_id.run_id)
            requests.append(RecordRequest(shard_id.branch(at), lost, opening=opening))
        self._store.record_all(requests)


def _is_over(run: RunRecord) -> bool:
    """Return whether a paused run must go on to end: its aggregate has no deadline."""
    return run.halt is not None or (run.is_overdue and run.stage == 0)
