"""The reaper: looks for runs that make no progress, and does again what got lost.

It runs in the workers, one of which holds its lock (workers.consumer.reaper), and on demand
(``Client.heal``). It acts on what it has seen missing twice, some seconds apart.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from fanout.broker.fleet_version import foreign_run_problem
from fanout.broker.inspection import seen_of_shard, seen_of_stage
from fanout.core.errors import BrokerError, StorageError, StoredDataError, UnknownRunError
from fanout.core.records import ErrorKind, Outcome, RunStatus
from fanout.policy.healing import Heal, Remedy, heal_shard, heal_stage
from fanout.runs.enqueue import delete, fleet_window, settle, unpark
from fanout.stores import End, Grant
from fanout.system.logs import about

if TYPE_CHECKING:
    from collections.abc import Callable

    from fanout.broker.inspection import Messages
    from fanout.broker.publisher import Publisher
    from fanout.stores import RedisStore, RunRecord, StageProgress

__all__ = ["MAX_HEALS", "Reaper"]

# A message that is lost again and again is no accident.
MAX_HEALS = 5

# What a healthy run has on its way between two places has arrived by then.
_LOOK_AGAIN_S = 1.0
# What heals one step may show that the next is missing too; more than a few are left to time.
_MAX_LOOKS = 5
# The files of runs that have expired are no matter of seconds.
_FILES_S = 300.0

# A run has these once all shards of its stage are written.
_SEALED = (RunStatus.RUNNING, RunStatus.REDUCING)

_log = logging.getLogger(__name__)

# A shard of a stage of a run; the stage itself has the number None.
_Key = tuple[str, int, int | None]


class Reaper:
    """Heals the runs of a store. One sweep is cheap where all runs make progress.

    Args:
        store: The runs.
        publisher: Publishes again.
        messages: What is in the broker.
        stall_s: Seconds without progress after which a shard is looked at closely.
        on_end: Is told of a run that had to be ended.
        clock: Seconds, rising.
    """

    def __init__(
        self,
        store: RedisStore,
        publisher: Publisher,
        messages: Messages,
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
        self._marks: dict[_Key, tuple[object, float]] = {}
        self._suspected: dict[_Key, Remedy] = {}
        self._seen: set[_Key] = set()
        self._broken: set[str] = set()
        self._files_due_at = clock()

    @property
    def is_suspicious(self) -> bool:
        """Whether the last sweep saw something missing that the next one will act on."""
        return bool(self._suspected)

    def heal_now(self, *, wait: Callable[[float], object] = time.sleep) -> int:
        """Sweep until nothing is missing that was missing a moment ago.

        Returns:
            How many steps were done again.

        Raises:
            BrokerError: The server does not answer.
        """
        healed = self.sweep()
        for _ in range(_MAX_LOOKS):
            if not self.is_suspicious:
                break
            wait(_LOOK_AGAIN_S)
            healed += self.sweep()
        return healed

    def sweep(self) -> int:
        """Look at all runs that have not ended; return how many steps were done again.

        Raises:
            BrokerError: The server does not answer.
        """
        self._messages.give_turns()
        stalled: dict[_Key, StageProgress] = {}
        self._seen.clear()
        for run_id in self._store.active_runs():
            try:
                stalled.update(self._look_at(run_id))
            except UnknownRunError:
                self._forget(run_id)
            except (BrokerError, StoredDataError) as error:
                if getattr(error, "is_passing", False):
                    raise
                # Whoever can write to the server may have put it there: it holds up no other run.
                self._say_broken(run_id, error)
        # What was not looked at this time is over: a long run has thousands of shards.
        self._marks = {key: mark for key, mark in self._marks.items() if key in self._seen}
        self._suspected = {k: remedy for k, remedy in self._suspected.items() if k in self._seen}
        self._sweep_files()
        return self._treat(stalled) if stalled else 0

    def _look_at(self, run_id: str) -> dict[_Key, StageProgress]:
        run = self._store.run(run_id)
        problem = foreign_run_problem(run.wire)
        if problem is not None and not run.has_ended:
            self._end(run_id, problem)
            return {}
        settle(self._store, self._publisher, run)
        return self._stalled(run)

    def _say_broken(self, run_id: str, error: Exception) -> None:
        if run_id not in self._broken:
            self._broken.add(run_id)
            _log.warning("run %s cannot be looked after: %s", run_id, error)

    def _end(self, run_id: str, problem: str) -> None:
        is_first = self._store.end_run(
            run_id, RunStatus.FAILED, ended_at=self._store.now(), error=problem
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
            # Whoever deleted it has died half-way, or is at it.
            delete(self._store, self._publisher, run_id)
        except UnknownRunError:
            # It has expired: ending it takes it off the list.
            self._store.end_run(run_id, RunStatus.FAILED, ended_at=self._store.now())

    def _stalled(self, run: RunRecord) -> dict[_Key, StageProgress]:
        if run.has_ended:
            return {}
        if run.status is RunStatus.PAUSED and not _is_over(run):
            # Nothing moves, as it should be: what is parked has no message.
            return {}
        unpark(self._store, self._publisher, run.run_id)
        progress = self._store.progress(run.run_id, run.stage)
        marks: dict[int | None, object] = dict(progress.marks.items())
        if not progress.open:
            marks[None] = (progress.written, progress.sealed, progress.opened)
        keys = {number: (run.run_id, run.stage, number) for number in marks}
        self._seen.update(keys.values())
        return {
            key: progress for number, key in keys.items() if self._is_stalled(key, marks[number])
        }

    def _is_stalled(self, key: _Key, mark: object) -> bool:
        now = self._clock()
        before, since = self._marks.get(key, (None, now))
        if before != mark:
            self._marks[key] = (mark, now)
            self._suspected.pop(key, None)
            return self._stall_s <= 0
        return now - since >= self._stall_s

    def _treat(self, stalled: dict[_Key, StageProgress]) -> int:
        task_ids = self._messages.task_ids()
        healed = 0
        for key, progress in stalled.items():
            try:
                remedy = self._remedy(key, progress, task_ids.get(key[0], set()))
                if remedy.heal is Heal.NOTHING:
                    self._suspected.pop(key, None)
                    # It is in order: there is time until the next close look.
                    self._marks[key] = (self._marks[key][0], self._clock())
                elif self._suspected.get(key) == remedy:
                    self._heal(key, remedy)
                    healed += 1
                else:
                    self._suspected[key] = remedy
            except UnknownRunError:
                continue
        return healed

    def _remedy(self, key: _Key, progress: StageProgress, task_ids: set[str]) -> Remedy:
        run_id, stage, number = key
        if number is None:
            seen = seen_of_stage(task_ids, run_id, stage)
            if not progress.sealed and self._store.run(run_id).status in _SEALED:
                return Remedy(heal=Heal.FAIL)
            incomplete = [] if progress.open else self._store.incomplete(run_id, stage)
            return heal_stage(progress, seen, incomplete=incomplete, max_heals=MAX_HEALS)
        seen = seen_of_shard(task_ids, run_id, stage, number)
        try:
            state = self._store.shard_state(run_id, stage, number)
        except UnknownRunError:
            # Of the run, or of the shard alone?
            self._store.run(run_id)
            return Remedy(heal=Heal.FAIL)
        lanes = progress.open.get(number, 0)
        return heal_shard(state, seen, lanes=lanes, max_heals=MAX_HEALS)

    def _heal(self, key: _Key, remedy: Remedy) -> None:
        run_id, stage, number = key
        del self._suspected[key]
        del self._marks[key]
        where = f"stage {stage}" if number is None else f"shard {number} of stage {stage}"
        of_what = f" of {len(remedy.positions)} branches" if remedy.positions else ""
        _log.warning(
            "run %s, %s: healing by %s%s",
            run_id,
            where,
            remedy.heal.value,
            of_what,
            extra=about(run_id, stage, number),
        )
        self._store.healed(run_id, stage, number)
        if remedy.heal is Heal.FAIL:
            message = f"{where} could not be brought to its end: see the logs of the workers"
            self._end(run_id, message)
        elif number is None:
            self._heal_stage(run_id, stage, remedy)
        else:
            self._heal_shard(run_id, stage, number, remedy)

    def _heal_stage(self, run_id: str, stage: int, remedy: Remedy) -> None:
        if remedy.heal is Heal.AGGREGATE:
            self._publisher.aggregate(run_id, stage)
            return
        if remedy.heal is Heal.ADOPT:
            self._store.adopt(run_id, stage, remedy.positions)
            return
        window = fleet_window(self._store)
        self._publisher.expand(run_id, stage, self._store.open_shards(run_id, stage, window=window))

    def _heal_shard(self, run_id: str, stage: int, number: int, remedy: Remedy) -> None:
        if remedy.heal is Heal.EXPAND:
            lanes = self._store.progress(run_id, stage).open.get(number, 0)
            self._publisher.expand(run_id, stage, [Grant(shard=number, lanes=lanes)])
        elif remedy.heal is Heal.COLLECT:
            self._publisher.collect(run_id, stage, number)
        elif remedy.heal is Heal.LOSE:
            self._lose(run_id, stage, number, remedy.positions)
        else:
            lanes = self._store.progress(run_id, stage).open.get(number, 0)
            count = self._store.shard_state(run_id, stage, number).count
            feed = count if 0 < lanes < count else 0
            # First, so that none of them is published as the one that follows another.
            last = remedy.positions[-1]
            self._store.advance_shard(run_id, stage, number, published=last + 1)
            self._publisher.branches(run_id, stage, number, remedy.positions, feed=feed)

    def _lose(self, run_id: str, stage: int, number: int, positions: tuple[int, ...]) -> None:
        indices = self._store.indices(run_id, stage, number)
        message = f"its message was lost {MAX_HEALS} times"
        now = time.time()
        self._store.record_all(
            [End(run_id, stage, number, at, _lost(indices[at], message, now)) for at in positions]
        )


def _lost(index: int, message: str, now: float) -> Outcome:
    return Outcome(index=index, kind=ErrorKind.LOST, message=message, ended_at=now)


def _is_over(run: RunRecord) -> bool:
    """Say whether a paused run must go on in order to end: no deadline holds for its aggregate."""
    return run.halt is not None or (run.is_overdue and run.stage == 0)
