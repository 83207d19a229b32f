"""The runs of the Redis store."""

from __future__ import annotations

import logging
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import msgspec

from fanout.core.errors import StorageError, StoredDataError, UnknownRunError
from fanout.core.ids import StageId
from fanout.core.queue_names import BRANCHES_QUEUE
from fanout.core.records import RunStatus
from fanout.policy.admission import in_play_limit, turns_of
from fanout.stores import codec
from fanout.stores.blobs.base import blob_folder
from fanout.stores.redis import run_scripts, turn_scripts
from fanout.stores.redis.base import or_empty, seconds, translated
from fanout.stores.redis.budgets import budget_fields
from fanout.stores.redis.passages import RedisPassages
from fanout.stores.redis.results import RedisResults
from fanout.stores.redis.stages import RedisStages

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fanout.core.budgets import BudgetLimits
    from fanout.core.records import ErrorKind
    from fanout.core.state import RunRecord

__all__ = ["RedisRuns"]

# Runs per round trip.
_PAGE = 100

_log = logging.getLogger(__name__)


class RedisRuns(RedisStages, RedisResults, RedisPassages):
    """The specs and statuses of runs.

    Deleting or reopening a run changes its shards too.
    """

    @translated
    def create_run(
        self,
        run_id: str,
        *,
        spec: str,
        created_at: float,
        deadline_at: float | None = None,
        wire: int | None = None,
        max_workers: int | None = None,
        priority: float = 1.0,
        is_gathered: bool = False,
        budget: tuple[BudgetLimits, BudgetLimits] | None = None,
        passages: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Write a new run in status ``enqueuing``.

        Args:
            run_id: Its id.
            spec: Its spec as JSON.
            created_at: Seconds since the epoch.
            deadline_at: Seconds since the epoch, or None.
            wire: The version of the wire format of its records.
            max_workers: The most branches of it in flight, or None.
            priority: Its share of busy workers.
            is_gathered: Whether its calls may wait for batches: more shards are open then.
            budget: What all its calls may use, and those of its branches; None without a budget.
            passages: The names of the indexes that it uses, by where their passages are from.
        """
        key = self._run(run_id)
        fields = {"spec": spec, "status": RunStatus.ENQUEUING.value, "created_at": created_at}
        if deadline_at is not None:
            fields["deadline_at"] = deadline_at
        if wire is not None:
            fields["wire"] = wire
        if max_workers is not None:
            # For the script that puts messages (fanout.stores.redis.turn_scripts).
            fields |= {"max_workers": max_workers, "in_play": in_play_limit(max_workers)}
        if is_gathered:
            fields["is_gathered"] = 1
        if priority != 1:
            fields |= {"priority": priority, "turns": turns_of(priority)}
        if budget is not None:
            fields |= budget_fields(*budget)
        if passages:
            fields["passages"] = msgspec.json.encode(passages).decode()
        with self._redis.pipeline() as pipe:
            pipe.hset(key, mapping=cast("dict[Any, Any]", fields))
            pipe.expire(key, self._ttl_s)
            pipe.zadd(f"{self._prefix}:runs", {run_id: created_at})
            pipe.sadd(self._active, run_id)
            pipe.hincrby(self._run_totals, "submitted", 1)
            *answers, _counted = pipe.execute(raise_on_error=False)
        for answer in answers:
            # A count that another client has damaged must not prevent a submission.
            if isinstance(answer, Exception):
                raise answer

    @translated
    def spec(self, run_id: str) -> str:
        """Return the JSON of the run's spec. Raises UnknownRunError."""
        spec = cast("bytes | None", self._redis.hget(self._run(run_id), "spec"))
        if spec is None:
            raise UnknownRunError(run_id)
        return spec.decode()

    @translated
    def run(self, run_id: str) -> RunRecord:
        """Return the state of a run. Raises UnknownRunError."""
        [record] = self._records([run_id])
        if record is None:
            raise UnknownRunError(run_id)
        if isinstance(record, StoredDataError):
            raise record
        return record

    def runs(self, prefix: str = "") -> Iterator[RunRecord]:
        """Yield the runs that have not expired and whose ids begin with ``prefix``, newest first."""
        run_ids = [run_id for run_id in self._run_ids() if run_id.startswith(prefix)]
        for start in range(0, len(run_ids), _PAGE):
            page = run_ids[start : start + _PAGE]
            for run_id, record in zip(page, self._records(page), strict=True):
                if record is None:
                    # It may be among the active runs: its deletion may not have ended.
                    self._unlist(run_id)
                elif isinstance(record, StoredDataError):
                    _log.warning("%s", record)
                else:
                    yield record

    @translated
    def _run_ids(self) -> list[str]:
        # All ids, as a scan by prefix takes as long: 5 ms for 50,000.
        ids = cast("list[bytes]", self._redis.zrange(f"{self._prefix}:runs", 0, -1, desc=True))
        return [run_id.decode() for run_id in ids]

    @translated
    def _records(self, run_ids: list[str]) -> list[RunRecord | StoredDataError | None]:
        """Return the runs in one round trip; None for each that has expired.

        A damaged run is returned as its error, so that callers still get the others.
        """
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            for run_id in run_ids:
                pipe.hmget(self._run(run_id), codec.RUN_FIELDS)
            time, *answers = pipe.execute(raise_on_error=False)
        if isinstance(time, Exception):
            raise time
        return [
            _record_of(run_id, answer, read_at=seconds(time))
            for run_id, answer in zip(run_ids, answers, strict=True)
        ]

    @translated
    def _unlist(self, run_id: str) -> None:
        self._redis.zrem(f"{self._prefix}:runs", run_id)

    @translated
    def active_runs(self) -> list[str]:
        """Return the runs that have not ended."""
        active = cast("set[bytes]", self._redis.smembers(self._active))
        return sorted(run_id.decode() for run_id in active)

    @translated
    def set_status(
        self,
        run_id: str,
        status: RunStatus,
        *,
        stage: int | None = None,
        opening: float | None = None,
    ) -> bool:
        """Move a run that has not ended to ``status``; return whether it was moved.

        The stage only rises: a task that is delivered again does not lower it. With an ``opening``
        (RunRecord.opening), not if a retry has reopened the run since.
        """
        args = [status, or_empty(stage), or_empty(opening)]
        return bool(self._call(run_scripts.SET_STATUS, [self._run(run_id)], args))

    @translated
    def end_run(
        self,
        run_id: str,
        status: RunStatus,
        *,
        ended_at: float,
        error: str | None = None,
        opening: float | None = None,
    ) -> bool:
        """Give a run its final status; return whether this call did. The first end stands.

        A run that was halted meanwhile gets the status of its halt. With an ``opening``
        (RunRecord.opening), a run that a retry has reopened since goes on.
        """
        args = [status, ended_at, error or "", self._ttl_s, run_id, or_empty(opening)]
        keys = [self._run(run_id), self._active, self._run_totals]
        return bool(self._call(run_scripts.END_RUN, keys, args))

    @translated
    def halt(
        self,
        run_id: str,
        status: RunStatus,
        *,
        error: str | None = None,
        opening: float | None = None,
    ) -> bool:
        """Let no further call start; the run will end with ``status``. The first halt stands.

        With an ``opening`` (RunRecord.opening), a run that a retry has reopened since goes on.
        """
        args = [status, error or "", or_empty(opening)]
        return bool(self._call(run_scripts.HALT, [self._run(run_id)], args))

    @translated
    def put_notice(self, run_id: str, notice: str | None, *, opening: float | None = None) -> bool:
        """Write what users are to know of a run that goes on; return whether it was written.

        With an ``opening`` (RunRecord.opening), not if a retry has reopened the run since.
        """
        args = [notice or "", or_empty(opening)]
        return bool(self._call(run_scripts.NOTICE, [self._run(run_id)], args))

    @translated
    def pause(self, run_id: str) -> bool:
        """Let no further branch begin until ``unpause``; return whether this call did."""
        return bool(self._call(run_scripts.PAUSE, [self._run(run_id)], ["1"]))

    @translated
    def unpause(self, run_id: str) -> bool:
        """Let branches begin again; return whether this call did. Parked branches stay parked."""
        return bool(self._call(run_scripts.PAUSE, [self._run(run_id)], ["0"]))

    @translated
    def reopen_run(self, run_id: str, *, retry: frozenset[ErrorKind]) -> bool:
        """Set a run that has ended back to ``running``; return whether this call did.

        Deletes its aggregate and the data of its reduce stages, but keeps their usage. Its shards
        can be opened again, and each can be reset once to the outcomes that did not fail with a
        kind in ``retry``.
        """
        run, base = self._run(run_id), self._stage(StageId(run_id, 0))
        gone = [f"{base}:{part}" for part in ("open", "draining", "reopened", "plan")]
        keys = [run, self._active, base, *gone]
        keys += [f"{run}:{part}" for part in ("result", "result:writers", "parked")]
        keys += [f"{run}:{part}" for part in ("gathered", "batches")]
        pieces = self._result_pieces(run_id)
        result = None if self._blobs.root is None else self._held(f"{run}:result")
        args = [self._ttl_s, run_id, codec.encode_kinds(retry)]
        if not self._call(run_scripts.REOPEN_RUN, keys, args):
            return False
        if result is not None:
            self._blobs.drop(f"{run_id}/result", result)
        # None were added meanwhile, as the run had ended.
        self._drop_result_pieces(run_id, pieces)
        for stage in range(1, self.run(run_id).base_stage + 1):
            stage_id = StageId(run_id, stage)
            self._delete_shards(stage_id, self.stage(stage_id).shards)
            with suppress(StorageError):
                # Remaining files are deleted with the run.
                self._blobs.drop_all(blob_folder(stage_id))
        return True

    @translated
    def begin_delete(self, run_id: str) -> list[int]:
        """Make a run unknown from now on, so that no process writes to it any more.

        Also for a run whose deletion began before and has not ended: it is among the active runs
        until ``delete_run`` is done.

        Returns:
            The number of shards of each stage.

        Raises:
            UnknownRunError: There is no such run.
        """
        run = self._run(run_id)
        keys = [run, f"{run}:deleted", self._active, f"{run}:passages"]
        last: int = self._call(run_scripts.DELETE_RUN, keys, [self._ttl_s, run_id])
        self._require(run_id, last >= 0)
        self._call(turn_scripts.FORGET_BACKLOG, [BRANCHES_QUEUE], [run_id])
        # One more than the record has: that stage may be in the middle of a write.
        return [self.stage(StageId(run_id, stage)).shards for stage in range(last + 2)]

    @translated
    def delete_run(self, run_id: str) -> None:
        """Delete all data of a run. Raises UnknownRunError."""
        shards = self.begin_delete(run_id)
        # A stage after its shards, and the mark last: an interrupted deletion is repeated.
        for stage, count in enumerate(shards):
            stage_id = StageId(run_id, stage)
            self._delete_shards(stage_id, count)
            self._redis.delete(self._stage(stage_id))
        if self._blobs.root is not None:
            with suppress(StorageError):
                # If the storage is unreachable, or another one, the sweep deletes them later.
                self._drop_files(run_id)
        self._drop_passages(run_id)
        self._delete_result_pieces(run_id)
        run = self._run(run_id)
        rest = ("result", "parked", "permits", "gathered", "batches", "budget", "budget:held",
                "passages")  # fmt: skip
        self._redis.delete(*(f"{run}:{part}" for part in rest))
        self._unlist(run_id)
        self._redis.srem(self._active, run_id)
        self._redis.delete(f"{run}:deleted")


def _record_of(
    run_id: str, answer: list[bytes | None] | Exception, *, read_at: float
) -> RunRecord | StoredDataError | None:
    if isinstance(answer, Exception):
        if str(answer).startswith("WRONGTYPE"):
            return StoredDataError(f"the record of run {run_id} is damaged (it is none)")
        raise answer
    if answer[0] is None:
        return None
    try:
        return codec.decode_run(run_id, answer, read_at=read_at)
    except StoredDataError as error:
        return error
