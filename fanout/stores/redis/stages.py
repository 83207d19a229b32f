"""The stages and shards of the Redis store."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from fanout.core.errors import UnknownRunError
from fanout.core.ids import ShardId
from fanout.core.queue_names import TAKEN, TURNS, backlogs_of
from fanout.core.state import (
    Frontier,
    SealReply,
    ShardState,
    StageFrontier,
    StageLoad,
    StageProgress,
)
from fanout.policy.packing import MAX_SHARD_BRANCHES
from fanout.stores import codec
from fanout.stores.blobs.base import blob_name
from fanout.stores.redis import stage_scripts
from fanout.stores.redis.base import translated
from fanout.stores.redis.blob_references import RedisBlobReferences
from fanout.stores.redis.groups import GROUP_PARTS, groups_field

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from fanout.core.ids import StageId
    from fanout.core.records import Outcome, Shard
    from fanout.core.state import StageRecord

__all__ = ["RedisStages"]

# Open shards, with those that drain, as a multiple of the window: a few slow calls per shard must not
# leave the workers idle, but the outcomes of an open shard are not compressed yet.
_MOST_WINDOWS = 8
# Open shards of a run whose calls wait for batches: enough for two of the largest. Of a gathered branch
# the server has a few hundred bytes.
_MOST_GATHERED = 240
# The answer of a script that wrote what no other process had.
_IS_FIRST = 2


class RedisStages(RedisBlobReferences):
    """The stages of runs and their shards: inputs, counts, and the shards in flight."""

    @translated
    def stage(self, stage_id: StageId) -> StageRecord:
        """Return the counts of a stage; all 0 if there is no such stage."""
        fields = cast("dict[bytes, bytes]", self._redis.hgetall(self._stage(stage_id)))
        return codec.decode_stage(fields)

    @translated
    def reopen_shard(
        self,
        shard_id: ShardId,
        *,
        kept: dict[int, Outcome],
        dropped: list[Outcome],
        checkpoints: Mapping[int, bytes] = MappingProxyType({}),
        regrouped: Sequence[int] = (),
    ) -> bool:
        """Reset a shard to the outcomes ``kept``; subtract those ``dropped`` from the counts.

        The branches with ``checkpoints``, by position, go on from there. Usage stays counted; the
        durations of those dropped do not. Only the first call after the run was reopened has an effect.
        ``regrouped`` are the numbers of the reduces whose groups go by the answers.

        Returns:
            Whether this call did it.
        """
        live, out, state = self._shard_keys(shard_id)
        key = self._stage(shard_id)
        args: list[Any] = [shard_id.shard, self._ttl_s, len(kept), len(checkpoints), len(regrouped)]
        for position, outcome in kept.items():
            args += [position, codec.encode_outcome(outcome)]
        for position, checkpoint in checkpoints.items():
            args += [position, checkpoint]
        args += [groups_field(number, shard_id.shard) for number in regrouped]
        for outcome in dropped:
            args += [outcome.kind or "", codec.latency_bucket(outcome), outcome.elapsed_s]
        keys = [key, f"{key}:reopened", out, live, state, self._run(shard_id.run_id)]
        keys += [self._shard(shard_id, "checkpoints"), f"{key}:groups"]
        name = blob_name(shard_id, "out")
        before = None if self._blobs.root is None else self._held(out)
        answer = self._call(stage_scripts.REOPEN_SHARD, keys, args)
        self._require(shard_id.run_id, answer >= 0)
        if answer and before is not None:
            self._blobs.drop(name, before)
        return bool(answer)

    @translated
    def is_reopened(self, shard_id: ShardId) -> bool:
        """Return whether a shard was reset since its run was reopened."""
        return bool(self._redis.sismember(f"{self._stage(shard_id)}:reopened", str(shard_id.shard)))

    @translated
    def reopened(self, stage_id: StageId, shards: Sequence[int]) -> frozenset[int]:
        """Return which of some shards were reset since the run was reopened; in one round trip."""
        key = f"{self._stage(stage_id)}:reopened"
        with self._redis.pipeline(transaction=False) as pipe:
            for number in shards:
                pipe.sismember(key, str(number))
            found = pipe.execute()
        return frozenset(number for number, is_there in zip(shards, found, strict=True) if is_there)

    @translated
    def is_finished(self, shard_id: ShardId) -> bool:
        """Return whether a shard is compacted."""
        return bool(self._redis.exists(self._shard(shard_id, "out")))

    def _delete_shards(self, stage_id: StageId, count: int) -> None:
        for shard_id in map(stage_id.shard, range(count)):
            parts = ("in", "live", "state", "checkpoints", "out")
            self._redis.delete(*(self._shard(shard_id, part) for part in parts))
        rest = ("open", "draining", "sizes", "reopened", *GROUP_PARTS)
        self._redis.delete(*(f"{self._stage(stage_id)}:{part}" for part in rest))

    @translated
    def put_shard(
        self,
        shard_id: ShardId,
        shard: Shard,
        *,
        groups: Mapping[int, bytes] = MappingProxyType({}),
    ) -> bool:
        """Write and count the input of the next shard of a stage; an existing one stays.

        ``groups`` are the groups of its branches (fanout.core.group_hashes), by the number of a reduce.

        Returns:
            Whether the stage accepts shards: not once it is sealed, or its run is halted or over.

        Raises:
            UnknownRunError: There is no such run.
        """
        keys = [
            self._run(shard_id.run_id),
            self._stage(shard_id),
            self._shard(shard_id, "in"),
            f"{self._stage(shard_id)}:sizes",
            f"{self._stage(shard_id)}:groups",
        ]
        name = blob_name(shard_id, "in")
        blob = codec.encode_shard(shard)
        held = self._keep(shard_id.run_id, name, blob, is_input=shard_id.stage == 0)
        args: list[Any] = [held, shard_id.shard, shard.count, self._ttl_s, shard.first]
        for reduce, hashes in groups.items():
            args += [groups_field(reduce, shard_id.shard), hashes]
        answer = self._call(stage_scripts.PUT_SHARD, keys, args)
        self._drop_if_late(keys[2], name, held)
        self._require(shard_id.run_id, answer >= 0)
        return bool(answer)

    @translated
    def frontier(self, stage_id: StageId, *, reduce: str = "") -> StageFrontier:
        """Return the size of a stage of a reduce, and how far a reduce of the job has written it."""
        field = f"frontier:{reduce}" if reduce else "frontier"
        written, total, data = self._redis.hmget(self._stage(stage_id), "written", "total", field)
        frontier = Frontier() if data is None else codec.decode_frontier(cast("bytes", data))
        return StageFrontier(shards=int(written or 0), branches=int(total or 0), frontier=frontier)

    @translated
    def put_next(
        self, shard_id: ShardId, shard: Shard, frontier: Frontier, *, reduce: str = ""
    ) -> bool | None:
        """Write the next shard of a stage of a reduce, and how far the reduce has written it.

        Returns:
            Whether this call did; False if another process has written the shard, None if the stage
            takes no more.

        Raises:
            UnknownRunError: There is no such run.
        """
        stage = self._stage(shard_id)
        keys = [self._run(shard_id.run_id), stage, self._shard(shard_id, "in"), f"{stage}:sizes"]
        name = blob_name(shard_id, "in")
        held = self._keep(shard_id.run_id, name, codec.encode_shard(shard))
        args: list[Any] = [held, shard_id.shard, shard.count, self._ttl_s, shard.first]
        args += [shard_id.stage, codec.encode_frontier(frontier), reduce]
        answer = self._call(stage_scripts.PUT_NEXT, keys, args)
        self._drop_if_late(keys[2], name, held)
        self._require(shard_id.run_id, answer >= 0)
        return None if answer == 0 else bool(answer == _IS_FIRST)

    @translated
    def shards_of(self, stage_id: StageId, *, reduce: str = "") -> list[int]:
        """Return the shards of a stage that a reduce has written, in order; without a name, all."""
        key = f"{self._stage(stage_id)}:sizes"
        sizes = cast("dict[bytes, bytes]", self._redis.hgetall(key))
        return sorted(
            int(shard)
            for shard, size in sizes.items()
            if not reduce or codec.decode_owner(size) == reduce
        )

    @translated
    def shard(self, shard_id: ShardId) -> Shard:
        """Return the input of a shard. Raises UnknownRunError if it has expired."""
        held = self._held(self._shard(shard_id, "in"))
        if held is None:
            raise UnknownRunError(shard_id.run_id)
        return codec.decode_shard(self._blobs.load(blob_name(shard_id, "in"), held))

    @translated
    def indices(self, shard_id: ShardId) -> range:
        """Return the stage-wide indices of a shard's branches. Raises UnknownRunError.

        They outlive its input, so that what became of it can be recorded without that.
        """
        size = self._redis.hget(f"{self._stage(shard_id)}:sizes", str(shard_id.shard))
        if size is None:
            raise UnknownRunError(shard_id.run_id)
        return codec.decode_size(cast("bytes", size))

    @translated
    def seal_stage(self, stage_id: StageId) -> SealReply:
        """Let a stage take no more shards: those that it has are all. Raises UnknownRunError."""
        keys = [self._run(stage_id.run_id), self._stage(stage_id)]
        shards, first = self._call(stage_scripts.SEAL, keys, [self._ttl_s])
        self._require(stage_id.run_id, shards >= 0)
        return SealReply(shards=shards, first=bool(first))

    @translated
    def open_shards(
        self,
        stage_id: StageId,
        *,
        window: int,
        finished: int | None = None,
        draining: int | None = None,
    ) -> list[int]:
        """Close the shard ``finished``, if any, and open shards until ``window`` are in flight.

        Args:
            stage_id: The stage.
            window: The number of shards. Those of a reduce have few branches where prompts are long: of
                them, so many more are in flight.
            finished: A shard that has ended.
            draining: A shard with few branches left that are not gathered: it no longer counts. At
                most eight windows are open in all, or more if the run's calls wait for batches.

        Returns:
            The shards that it opened.
        """
        key = self._stage(stage_id)
        args: list[Any] = [window, -1 if finished is None else finished, self._ttl_s]
        args += [-1 if draining is None else draining, _MOST_WINDOWS, _MOST_GATHERED]
        args.append(MAX_SHARD_BRANCHES if stage_id.stage else 0)
        keys = [key, f"{key}:open", f"{key}:draining", self._run(stage_id.run_id)]
        shards = cast("list[int] | None", self._call(stage_scripts.OPEN_SHARDS, keys, args))
        if shards is None:
            raise UnknownRunError(stage_id.run_id)
        return shards

    @translated
    def start_shard(self, shard_id: ShardId) -> bool:
        """Note that the branches of a shard are being published.

        Returns:
            Whether this call was the first.
        """
        keys = [self._shard(shard_id, "state"), self._run(shard_id.run_id)]
        answer = self._call(stage_scripts.START_SHARD, keys, [self._ttl_s])
        self._require(shard_id.run_id, answer >= 0)
        return bool(answer)

    @translated
    def progress(self, stage_id: StageId) -> StageProgress:
        """Return the progress of the shards of a stage."""
        key = self._stage(stage_id)
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hmget(key, "written", "sealed", "opened", "heals")
            pipe.hkeys(f"{key}:open")
            (written, sealed, opened, heals), open_ = pipe.execute()
        shards = sorted(map(int, open_))
        with self._redis.pipeline(transaction=False) as pipe:
            for shard_id in map(stage_id.shard, shards):
                live, out, state = self._shard_keys(shard_id)
                pipe.hlen(live)
                pipe.hlen(state)
                pipe.exists(out)
            marks = pipe.execute()
        return StageProgress(
            written=int(written or 0),
            sealed=sealed is not None,
            opened=int(opened or 0),
            open=frozenset(shards),
            marks={n: tuple(marks[3 * i : 3 * i + 3]) for i, n in enumerate(shards)},
            heals=int(heals or 0),
        )

    @translated
    def stage_load(self, stage_id: StageId) -> StageLoad:
        """Return how much of a stage is in flight; all 0 if there is no such stage."""
        key = self._stage(stage_id)
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hmget(key, "written", "opened")
            pipe.hmget(self._run(stage_id.run_id), "permits", "max_workers", "in_play")
            pipe.hlen(f"{key}:open")
            pipe.hget(TURNS, stage_id.run_id)
            pipe.hget(TAKEN, stage_id.run_id)
            pipe.hlen(f"{self._run(stage_id.run_id)}:gathered")
            for backlog in backlogs_of(stage_id.run_id):
                pipe.llen(backlog)
            counts, permits, open_, turns, taken, gathered, *lengths = pipe.execute()
        written, opened, used, cap, limit = (int(count or 0) for count in [*counts, *permits])
        in_play, behind = int(turns or 0) + int(taken or 0), sum(lengths)
        # Of its backlog, as many messages count as waiting as its limit has room for.
        in_play += max(0, min(behind, limit - in_play))
        return StageLoad(
            open=open_,
            waiting=written - opened,
            permits_used=used,
            permits_limit=cap,
            waiting_for_permits=max(0, in_play - cap) if cap else 0,
            gathered=gathered,
        )

    @translated
    def shard_state(self, shard_id: ShardId) -> ShardState:
        """Return the state of a shard. Raises UnknownRunError."""
        live, out, state = self._shard_keys(shard_id)
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hget(f"{self._stage(shard_id)}:sizes", str(shard_id.shard))
            pipe.hgetall(state)
            pipe.hkeys(live)
            pipe.time()
            pipe.zrange(self._holders, 0, -1, withscores=True)
            # Last, as compaction deletes the live outcomes: a shard is never seen without both.
            pipe.exists(out)
            size, fields, ended, (now_s, now_us), holders, finished = pipe.execute()
        if size is None:
            raise UnknownRunError(shard_id.run_id)
        indices = codec.decode_size(size)
        now = now_s + now_us / 1e6
        gathered = self._gathered_positions(shard_id, len(indices))
        alive = {holder.decode() for holder, until in holders if until > now}
        return ShardState(
            first=indices.start,
            count=len(indices),
            published=b"published" in fields,
            finished=bool(finished),
            ended=frozenset(int(position) for position in ended),
            held=codec.held_positions(fields, alive, now) | gathered,
            heals=int(fields.get(b"heals", 0)),
        )

    def _gathered_positions(self, shard_id: ShardId, count: int) -> frozenset[int]:
        key = f"{self._run(shard_id.run_id)}:gathered"
        if not self._redis.exists(key):
            return frozenset()
        branches = map(shard_id.branch, range(count))
        marks = self._redis.hmget(key, [codec.encode_parked(branch) for branch in branches])
        return frozenset(at for at, mark in enumerate(cast("list[Any]", marks)) if mark)

    @translated
    def incomplete(self, stage_id: StageId) -> list[int]:
        """Return the shards of a stage that have fewer outcomes than branches."""
        key = f"{self._stage(stage_id)}:sizes"
        sizes = cast("dict[bytes, bytes]", self._redis.hgetall(key))
        lengths = {int(shard): len(codec.decode_size(size)) for shard, size in sizes.items()}
        with self._redis.pipeline(transaction=False) as pipe:
            for shard_id in map(stage_id.shard, lengths):
                live, out, _ = self._shard_keys(shard_id)
                pipe.exists(out)
                pipe.hlen(live)
            counts = pipe.execute()
        counted = zip(lengths, counts[::2], counts[1::2], strict=True)
        return sorted(n for n, finished, ended in counted if not finished and ended < lengths[n])

    @translated
    def adopt(self, stage_id: StageId, shards: Iterable[int]) -> None:
        """Add shards to those that are being processed, unless they are among them."""
        keys = [f"{self._stage(stage_id)}:open", self._run(stage_id.run_id)]
        self._require(
            stage_id.run_id, self._call(stage_scripts.ADOPT, keys, [self._ttl_s, *shards])
        )

    @translated
    def healed(self, of: StageId | ShardId) -> None:
        """Count a heal of a shard, or of the stage itself."""
        key = self._shard(of, "state") if isinstance(of, ShardId) else self._stage(of)
        keys = [key, self._totals, self._run(of.run_id)]
        self._require(of.run_id, self._call(stage_scripts.HEALED, keys, [self._ttl_s]))
