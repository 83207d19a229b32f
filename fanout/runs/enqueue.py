"""Enqueues a run: makes chunks, shards and messages from documents."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from itertools import islice, zip_longest
from typing import TYPE_CHECKING

from fanout.core.errors import (
    FanoutError,
    InputError,
    RunError,
    StoredDataError,
    UnknownRunError,
)
from fanout.core.ids import StageId
from fanout.core.model_names import READER_MODEL
from fanout.core.queue_names import BRANCHES_QUEUE
from fanout.core.records import Document, RunStatus
from fanout.inputs.splitters import split_documents, splitter_of
from fanout.policy.admission import shard_window
from fanout.policy.packing import MAX_SHARD_BRANCHES, pack
from fanout.runs.branch_groups import known_groups

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from fanout.broker.publisher import Publisher
    from fanout.core.ids import ShardId
    from fanout.core.records import Chunk, Shard
    from fanout.core.spec import RunSpec
    from fanout.core.state import RunRecord
    from fanout.stores import RedisStore

__all__ = [
    "Enqueuer",
    "close_input",
    "close_stopped_input",
    "delete",
    "fleet_window",
    "has_frontier",
    "open_stage",
    "seal_reduce_stage",
    "unpark",
]


# The answers of a shard are in memory together; in a run that reads, each is a whole document.
_MAX_READ_BRANCHES = 64
_MAX_READ_MB = 256.0
# The first shards of a run whose reduce begins with its first shard.
_FIRST_BRANCHES = 50


class Enqueuer:
    """Writes the shards of a run, and opens the first while it writes the rest."""

    def __init__(
        self,
        store: RedisStore,
        publisher: Publisher,
        on_bad_document: Callable[[str, str], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        self._store = store
        self._publisher = publisher
        self._on_bad_document = on_bad_document
        self._should_stop = should_stop

    def enqueue(self, run_id: str, spec: RunSpec, documents: Iterator[Document]) -> None:
        """Split, pack, write and publish; the run is ``running`` when this returns."""
        shards = self._shards(run_id, spec, documents)
        try:
            self._open(run_id, spec, shards)
        except Exception as error:
            is_source = isinstance(error, (InputError, StoredDataError))
            if isinstance(error, FanoutError) and not is_source:
                raise
            # The source failed: a partial input must not look complete.
            enqueued = self._fail_partial_run(run_id, error)
            if not (enqueued and isinstance(error, InputError)):
                raise
            raise InputError(
                f"{error}; run {run_id} ends as failed, with the {enqueued:,} branches that were "
                "enqueued before"
            ) from error

    def _fail_partial_run(self, run_id: str, error: Exception) -> int:
        """Fail a run whose input cannot be read further; return the number of its branches."""
        enqueued = self._store.stage(StageId(run_id, 0)).total
        if not enqueued:
            self._store.delete_run(run_id)
            return 0
        self._store.halt(run_id, RunStatus.FAILED, error=f"the input could not be read: {error}")
        close_input(self._store, self._publisher, run_id)
        return enqueued

    def resume(self, run_id: str, spec: RunSpec, documents: Iterator[Document]) -> None:
        """Enqueue the rest of a run, after the last shard that any client has written.

        Raises:
            RunError: The input has changed; the run is unchanged.
        """
        shards = _same_as_before(self._store, run_id, self._shards(run_id, spec, documents))
        self._open(run_id, spec, shards)

    def _open(self, run_id: str, spec: RunSpec, shards: Iterator[Shard]) -> None:
        groups = partial(known_groups, run_id, spec)
        open_stage(self._store, self._publisher, StageId(run_id, 0), shards, groups)

    def compare(self, run: RunRecord, spec: RunSpec, documents: Iterator[Document]) -> None:
        """Check that an input is the one that a run has read.

        Raises:
            RunError: It differs, or is longer than the complete input of the run.
        """
        map_id = StageId(run.run_id, 0)
        written = self._store.stage(map_id).shards
        shards = self._shards(run.run_id, spec, documents)
        count = 0
        for count, shard in enumerate(islice(shards, written), 1):
            _compare(self._store, map_id.shard(count - 1), shard)
        # A run that was stopped has not read its whole input.
        has_more = run.halt is None and next(shards, None) is not None
        if count < written or has_more:
            how = "longer" if has_more else "shorter"
            raise RunError(f"the input is not the same as before: it is {how}")

    def _shards(self, run_id: str, spec: RunSpec, documents: Iterator[Document]) -> Iterator[Shard]:
        begins_early = any(one.kind == "llm" for one in spec.reductions)
        chunks = self._reported(split_documents(documents, splitter_of(spec)))
        shards = pack(
            chunks,
            branches_per_chunk=spec.branches_per_chunk,
            max_branches=_max_branches(spec),
            neighbours=spec.neighbours,
            first_branches=_FIRST_BRANCHES if begins_early else None,
        )
        return self._stoppable(run_id, shards)

    def _reported(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        for chunk in chunks:
            if chunk.error is not None and self._on_bad_document is not None:
                self._on_bad_document(chunk.document, chunk.error)
            yield chunk

    def _stoppable(self, run_id: str, shards: Iterator[Shard]) -> Iterator[Shard]:
        for shard in shards:
            if self._should_stop is not None and self._should_stop():
                self._store.halt(run_id, RunStatus.CANCELLED)
                return
            yield shard


def has_frontier(spec: RunSpec) -> bool:
    """Return whether a tree of a job begins before its branches have ended."""
    return any(reduce.has_frontier for reduce in spec.reductions)


def _max_branches(spec: RunSpec) -> int:
    """Return how many branches a shard may have."""
    if spec.model != READER_MODEL:
        return MAX_SHARD_BRANCHES
    return max(1, min(_MAX_READ_BRANCHES, int(_MAX_READ_MB / spec.max_document_mb)))


def open_stage(
    store: RedisStore,
    publisher: Publisher,
    stage_id: StageId,
    shards: Iterable[Shard],
    groups_of: Callable[[Shard], Mapping[int, bytes]] = lambda _shard: {},
) -> None:
    """Write the shards of the branches of a run, publish the first, and seal their stage.

    The call may be repeated, also by two processes at once: each shard is written and counted once.
    It stops as soon as the stage takes no more shards: the run was stopped, or another process has
    sealed the stage. ``groups_of`` returns the groups of the branches of a shard.
    """
    written = store.stage(stage_id).shards
    window = fleet_window(store)
    for number, shard in enumerate(shards):
        if number >= written:
            groups = groups_of(shard)
            if not store.put_shard(stage_id.shard(number), shard, groups=groups):
                break
        publisher.expand(stage_id, store.open_shards(stage_id, window=window))
    sealed = store.seal_stage(stage_id)
    store.set_status(stage_id.run_id, RunStatus.RUNNING, stage=0)
    if sealed.first:
        publisher.seal(stage_id, shards=sealed.shards)


def seal_reduce_stage(store: RedisStore, publisher: Publisher, stage_id: StageId) -> None:
    """Seal a stage of the reduce, which is processed from now on. The call may be repeated."""
    sealed = store.seal_stage(stage_id)
    store.set_status(stage_id.run_id, RunStatus.REDUCING, stage=stage_id.stage)
    # If it was already sealed, the task that seals it is a repeat after a crash.
    publisher.seal(stage_id, shards=sealed.shards)


def fleet_window(store: RedisStore) -> int:
    """Return how many shards of a stage may be in flight with the live workers."""
    takers = [worker for worker in store.workers() if BRANCHES_QUEUE in worker.queues]
    return shard_window(sum(worker.concurrency for worker in takers))


def _same_as_before(store: RedisStore, run_id: str, shards: Iterable[Shard]) -> Iterator[Shard]:
    """Yield the shards of a run's input; compare each with the stored one, if there is one.

    Raises:
        RunError: One differs, or the input ends before them.
    """
    map_id = StageId(run_id, 0)
    count = 0
    for count, shard in enumerate(shards, 1):
        # Read each time, as another client may still be writing.
        if count <= store.stage(map_id).shards:
            _compare(store, map_id.shard(count - 1), shard)
        yield shard
    run, record = store.run(run_id), store.stage(map_id)
    if count < record.shards and run.halt is None and not record.sealed:
        total = record.total
        raise RunError(
            f"the input is not the same as before: it has ended, but {total:,} branches of run "
            f"{run_id} were enqueued of what was longer"
        )


def _compare(store: RedisStore, shard_id: ShardId, now: Shard) -> None:
    before = store.shard(shard_id)
    if before == now:
        return
    where = f"in shard {shard_id.shard}"
    for old, new in zip_longest(before.chunks, now.chunks):
        if old != new:
            known = old or new
            where = f"at document {known.document!r} (chunk {known.position} of it, {where})"
            break
    raise RunError(f"the input is not the same as before: it differs {where}")


def close_input(store: RedisStore, publisher: Publisher, run_id: str) -> None:
    """Seal a run with its present shards if its client will not, so that the run ends.

    Only one of the callers and the client publishes the seal; if it dies first, the reaper does.
    """
    map_id = StageId(run_id, 0)
    if store.stage(map_id).sealed:
        return
    sealed = store.seal_stage(map_id)
    if not sealed.first:
        return
    store.set_status(run_id, RunStatus.RUNNING, stage=0)
    publisher.expand(map_id, store.open_shards(map_id, window=fleet_window(store)))
    publisher.seal(map_id, shards=sealed.shards)


def delete(store: RedisStore, publisher: Publisher, run_id: str) -> None:
    """Delete a run, its chords and its messages. Raises UnknownRunError.

    After the first step no process writes data of the run. If this process dies after that step,
    the reaper does the rest.
    """
    shards = store.begin_delete(run_id)
    publisher.forget_run(run_id, shards)
    # The reaper of a fleet may have finished the deletion meanwhile.
    with suppress(UnknownRunError):
        store.delete_run(run_id)


def close_stopped_input(store: RedisStore, publisher: Publisher, run: RunRecord) -> None:
    """Seal a run that was stopped, or is overdue, before its input was read, so that it ends."""
    if run.has_ended or not (run.halt or run.is_overdue):
        return
    if store.stage(StageId(run.run_id, 0)).sealed:
        return
    if run.halt is None:
        message = "the deadline passed before the input was read"
        store.halt(run.run_id, RunStatus.FAILED, error=message, opening=run.opening)
    close_input(store, publisher, run.run_id)


def unpark(store: RedisStore, publisher: Publisher, run_id: str) -> int:
    """Publish the branches that were parked while a run was paused; return how many."""
    parked = store.take_parked(run_id)
    publisher.mixed_branches(parked)
    return len(parked)
