"""The groups of a run in the Redis store, for reduces with very many of them.

Of each shard, the store has the groups of its branches as hashes, in a field of ``:sN:groups`` (N is 0: the
map). From these a plan of partitions is made (fanout.policy.group_plans), in ``:s0:plan``. Each partition
writes shards of the stages of the reduce: ``:sN:parts`` has how far it is, ``:sN:owners`` the partition of
each shard, and ``:sN:leases`` which process packs a partition at present.
"""

from __future__ import annotations

import zlib
from array import array
from typing import TYPE_CHECKING, Any, cast

import msgspec

from fanout.core.errors import StoredDataError
from fanout.core.group_hashes import MOST_BRANCHES, decode_hashes
from fanout.core.ids import StageId
from fanout.core.partitions import PartitionRecord, PartWrite
from fanout.policy.group_plans import GroupPlan, PartitionGroups
from fanout.stores import codec
from fanout.stores.blobs.base import blob_name
from fanout.stores.redis import group_scripts
from fanout.stores.redis.base import translated
from fanout.stores.redis.blob_references import RedisBlobReferences

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fanout.core.ids import PartitionId, ShardId
    from fanout.core.records import Shard

__all__ = ["GROUP_PARTS", "RedisGroups"]

# The keys of a stage.
GROUP_PARTS = ("groups", "plan", "parts", "owners", "leases")

_WRITES = {
    0: PartWrite.CLOSED,
    1: PartWrite.OVERTAKEN,
    2: PartWrite.MOVED,
    3: PartWrite.DONE,
}
_plan = msgspec.json.Decoder(GroupPlan).decode
_record = msgspec.json.Decoder(PartitionRecord).decode
_encode = msgspec.json.Encoder().encode


class RedisGroups(RedisBlobReferences):
    """The groups of a run, their plan, and how far each partition of them is."""

    @translated
    def put_groups(
        self, shard_id: ShardId, reduce: int, hashes: bytes, *, opening: float, is_reset: bool
    ) -> bool:
        """Write the groups of the branches of a shard, as a reduce has them by their answers.

        Args:
            shard_id: The shard.
            reduce: The number of the reduce.
            hashes: Its groups.
            opening: The opening of the run, as it was before the outcomes were read.
            is_reset: Whether the shard had been reset in that opening by then.

        Returns:
            Whether this call wrote them: not if a retry has taken back outcomes since.

        Raises:
            UnknownRunError: There is no such run.
        """
        stage = self._stage(shard_id)
        keys = [self._run(shard_id.run_id), f"{stage}:groups", f"{stage}:reopened"]
        args: list[Any] = [self._ttl_s, groups_field(reduce, shard_id.shard), hashes]
        args += [opening, shard_id.shard, int(is_reset)]
        answer = self._call(group_scripts.PUT_GROUPS, keys, args)
        self._require(shard_id.run_id, answer >= 0)
        return bool(answer)

    @translated
    def groups_of(
        self, stage_id: StageId, reduce: int, shards: Sequence[int]
    ) -> list[array[int] | None]:
        """Return the hashes of the groups of the branches of each of some shards; None where it has none.

        Raises:
            StoredDataError: They are damaged.
        """
        key = f"{self._stage(stage_id)}:groups"
        found = self._redis.hmget(key, [groups_field(reduce, shard) for shard in shards])
        return [
            None if data is None else decode_hashes(data)
            for data in cast("list[bytes | None]", found)
        ]

    @translated
    def put_group_plan(
        self,
        run_id: str,
        reduce: int,
        plan: GroupPlan,
        groups: Sequence[PartitionGroups],
        *,
        opening: float,
    ) -> bool:
        """Write the plan of a reduce; the first one of an opening of the run stands.

        Returns:
            Whether this call wrote it.

        Raises:
            UnknownRunError: There is no such run.
        """
        keys = [self._run(run_id), f"{self._stage(StageId(run_id, 0))}:plan"]
        args: list[Any] = [self._ttl_s, opening, f"{reduce}", _encode(plan)]
        for number, some in enumerate(groups):
            args += [f"{reduce}:{number}", _encode_groups(some)]
        answer = self._call(group_scripts.PUT_PLAN, keys, args)
        self._require(run_id, answer >= 0)
        return bool(answer)

    @translated
    def group_plan(self, run_id: str, reduce: int) -> GroupPlan | None:
        """Return the plan of a reduce; None if none is made yet. Raises StoredDataError."""
        data = self._redis.hget(f"{self._stage(StageId(run_id, 0))}:plan", f"{reduce}")
        try:
            return None if data is None else _plan(cast("bytes", data))
        except msgspec.MsgspecError as error:
            raise StoredDataError(f"the plan of groups is damaged ({error})") from None

    @translated
    def partition_groups(self, partition_id: PartitionId) -> PartitionGroups:
        """Return the groups of a partition. Raises StoredDataError, or UnknownRunError."""
        key = f"{self._stage(StageId(partition_id.run_id, 0))}:plan"
        data = self._redis.hget(key, f"{partition_id.reduce}:{partition_id.partition}")
        if data is None:
            run_id = partition_id.run_id
            self._require(run_id, self._redis.exists(self._run(run_id)))
            raise StoredDataError(f"partition {partition_id.partition} of the groups is missing")
        return _decode_groups(cast("bytes", data))

    @translated
    def take_partition(self, partition_id: PartitionId, token: str, *, lasts_s: float) -> bool:
        """Take a partition for one process, or renew that; return whether it has it.

        The stage of ``partition_id`` is the one that is written. Raises UnknownRunError.
        """
        keys = [self._run(partition_id.run_id), f"{self._stage(partition_id.stage_id)}:leases"]
        args: list[Any] = [_part_field(partition_id), token, lasts_s, self._ttl_s]
        answer = self._call(group_scripts.TAKE_PARTITION, keys, args)
        self._require(partition_id.run_id, answer >= 0)
        return bool(answer)

    @translated
    def release_partition(self, partition_id: PartitionId, token: str) -> None:
        """Let other processes take a partition."""
        keys = [f"{self._stage(partition_id.stage_id)}:leases"]
        args = [_part_field(partition_id), token]
        self._call(group_scripts.RELEASE_PARTITION, keys, args)

    @translated
    def partition(self, partition_id: PartitionId) -> PartitionRecord:
        """Return how far a partition has written the stage of ``partition_id``."""
        key = f"{self._stage(partition_id.stage_id)}:parts"
        return _decode_record(
            cast("bytes | None", self._redis.hget(key, _part_field(partition_id)))
        )

    @translated
    def partitions(self, stage_id: StageId, reduce: int, count: int) -> list[PartitionRecord]:
        """Return how far each of the partitions of a reduce has written a stage."""
        if not count:
            return []
        fields = [_part_field(stage_id.partition(reduce, number)) for number in range(count)]
        found = self._redis.hmget(f"{self._stage(stage_id)}:parts", fields)
        return [_decode_record(data) for data in cast("list[bytes | None]", found)]

    @translated
    def owner(self, shard_id: ShardId) -> PartitionId | None:
        """Return the partition that has written a shard; None if none has."""
        data = self._redis.hget(f"{self._stage(shard_id)}:owners", str(shard_id.shard))
        if data is None:
            return None
        reduce, _, partition = cast("bytes", data).decode().partition(":")
        return shard_id.stage_id.partition(int(reduce), int(partition))

    @translated
    def size(self, stage_id: StageId) -> tuple[int, int]:
        """Return the number of shards and of branches that a stage has so far."""
        written, total = self._redis.hmget(self._stage(stage_id), "written", "total")
        return int(written or 0), int(total or 0)

    @translated
    def put_part(
        self,
        partition_id: PartitionId,
        *,
        before: PartitionRecord,
        after: PartitionRecord,
        shard: tuple[ShardId, Shard] | None = None,
        reduce: str = "",
    ) -> PartWrite:
        """Write a shard of a partition, and how far it is then, in one step; or only how far it is.

        ``reduce`` is the name of its reduce, in a job with several.

        Raises:
            UnknownRunError: There is no such run.
        """
        stage, run_id = self._stage(partition_id.stage_id), partition_id.run_id
        held, number, count, first, name, key = b"", 0, 0, 0, "", stage
        if shard is not None:
            shard_id, content = shard
            number, count, first = shard_id.shard, content.count, content.first
            name, key = blob_name(shard_id, "in"), self._shard(shard_id, "in")
            held = self._keep(run_id, name, codec.encode_shard(content))
        keys = [self._run(run_id), stage, key]
        keys += [f"{stage}:{part}" for part in ("sizes", "parts", "owners")]
        args: list[Any] = [held, number, count, self._ttl_s, first, partition_id.stage]
        args += [_part_field(partition_id), _encode_record(before), _encode_record(after), reduce]
        answer = self._call(group_scripts.PUT_PART, keys, args)
        if shard is not None:
            self._drop_if_late(key, name, held)
        self._require(run_id, answer >= 0)
        return _WRITES[answer]


def groups_field(reduce: int, shard: int) -> str:
    """Return the field with the groups of a shard, as a reduce has them."""
    return f"{reduce}:{shard}"


def _part_field(partition_id: PartitionId) -> str:
    return f"{partition_id.reduce}:{partition_id.partition}"


def _encode_record(record: PartitionRecord) -> bytes:
    """Return a record as bytes; none at all for one with nothing in it."""
    return b"" if record == PartitionRecord() else _encode(record)


def _decode_record(data: bytes | None) -> PartitionRecord:
    try:
        return _record(data) if data else PartitionRecord()
    except msgspec.MsgspecError as error:
        raise StoredDataError(f"the record of a partition is damaged ({error})") from None


def _encode_groups(groups: PartitionGroups) -> bytes:
    rows = (list(column) for column in groups)
    return zlib.compress(msgspec.msgpack.encode(tuple(rows)), 1)


_rows = msgspec.msgpack.Decoder(tuple[list[int], list[int], list[int], list[int]]).decode


def _decode_groups(data: bytes) -> PartitionGroups:
    inflater = zlib.decompressobj()
    try:
        # A row of numbers of at most 9 bytes each.
        plain = inflater.decompress(data, 4 * 10 * MOST_BRANCHES)
        hashes, *others = _rows(plain)
        return PartitionGroups(array("Q", hashes), *(array("I", some) for some in others))
    except (zlib.error, msgspec.MsgspecError, OverflowError) as error:
        raise StoredDataError(f"a partition of the groups is damaged ({error})") from None
