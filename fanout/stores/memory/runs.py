"""The runs of the memory store."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from fanout.core.records import RunStatus
from fanout.core.state import RunRecord
from fanout.stores.memory.base import MemoryBase, StoredRun

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.core.records import ErrorKind

__all__ = ["MemoryRuns"]


class MemoryRuns(MemoryBase):
    """See ``fanout.stores.base.Runs``."""

    def create_run(
        self,
        run_id: str,
        *,
        spec: str,
        created_at: float,
        deadline_at: float | None = None,
        wire: int | None = None,
    ) -> None:
        """See Store."""
        record = RunRecord(
            run_id=run_id,
            status=RunStatus.ENQUEUING,
            created_at=created_at,
            deadline_at=deadline_at,
            wire=wire,
        )
        with self._lock:
            self._runs[run_id] = StoredRun(spec, record)
            submitted = self._totals.submitted + 1
            self._totals = msgspec.structs.replace(self._totals, submitted=submitted)

    def spec(self, run_id: str) -> str:
        """See Store."""
        return self._run(run_id).spec

    def run(self, run_id: str) -> RunRecord:
        """See Store."""
        run = self._run(run_id)
        record = msgspec.structs.replace(run.record, read_at=time.time())
        if run.is_paused and not record.has_ended:
            return msgspec.structs.replace(record, status=RunStatus.PAUSED)
        return record

    def active_runs(self) -> list[str]:
        """See Store."""
        runs = [run_id for run_id, run in self._runs.items() if not run.record.has_ended]
        return sorted([*runs, *self._deleted])

    def runs(self, prefix: str = "") -> Iterator[RunRecord]:
        """See Store."""
        records = [self.run(run_id) for run_id in self._runs if run_id.startswith(prefix)]
        yield from sorted(records, key=lambda record: record.created_at, reverse=True)

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
            ended = {**self._totals.ended, status: self._totals.ended.get(status, 0) + 1}
            self._totals = msgspec.structs.replace(self._totals, ended=ended)
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

    def reopen_run(self, run_id: str, *, retry: frozenset[ErrorKind]) -> bool:
        """See Store."""
        with self._lock:
            run = self._runs.get(run_id)
            if run is None or not run.record.has_ended:
                return False
            run.record = RunRecord(
                run_id=run_id,
                status=RunStatus.RUNNING,
                created_at=run.record.created_at,
                reopened_at=time.time(),
                base_stage=run.record.last_stage,
                retry=retry,
            )
            for number, stage in run.stages.items():
                if number:
                    stage.shards.clear()
            run.stages[0].open, run.stages[0].opened, run.result = {}, 0, None
            run.stages[0].heals, run.is_paused, run.parked = 0, False, set()
            run.stages[0].reopened, run.stages[0].draining = set(), set()
            return True

    def begin_delete(self, run_id: str) -> list[int]:
        """See Store."""
        with self._lock:
            if run_id not in self._deleted:
                self._deleted[run_id] = self._run(run_id)
                del self._runs[run_id]
            run = self._deleted[run_id]
            return [run.stages[stage].record.shards for stage in range(run.record.last_stage + 2)]

    def delete_run(self, run_id: str) -> None:
        """See Store."""
        with self._lock:
            self.begin_delete(run_id)
            del self._deleted[run_id]

    def storage_problem(self, *, is_worker: bool = False) -> str | None:  # noqa: ARG002
        """See Store."""
        return None

    def sweep_files(self, *, everything: bool = False) -> int:  # noqa: ARG002 - there are none
        """See Store."""
        return 0

    def put_result(self, run_id: str, result: bytes) -> None:
        """See Store."""
        with self._lock:
            run = self._run(run_id)
            run.result = result if run.result is None else run.result

    def result(self, run_id: str) -> bytes | None:
        """See Store."""
        run = self._runs.get(run_id)
        return run.result if run else None
