"""The batches of the Redis store: made of gathered calls, by one process at a time.

Its keys are described in ``fanout.stores.redis.gathered``.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, cast

import msgspec

from fanout.core.errors import StoredDataError
from fanout.core.gathered import (
    BatchRecord,
    FilledBatch,
    LaneQueue,
    LaneRecord,
    Leadership,
    Member,
)
from fanout.core.ids import BranchId
from fanout.stores.redis import batch_scripts
from fanout.stores.redis.base import run_keys, seconds, translated
from fanout.stores.redis.gathered import decoded, line_name
from fanout.stores.redis.joined import RedisJoined

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fanout.core.gathered import LandRequest

__all__ = ["RedisBatchLanes"]

# A script blocks the server while it runs: a call for this many branches takes about 1 ms.
_AT_ONCE = 200
_PAGE = 500
# Lines are larger than what else is read in pages.
_LINES = 100


class RedisBatchLanes(RedisJoined):
    """The batches, and the calls that are in none yet."""

    @translated
    def lead_batches(self, process: str, *, ttl_s: float) -> Leadership | None:
        """Take or renew the right to make batches; None if another process has it."""
        keys = [self._batches("leader")]
        epoch, left_ms = self._call(batch_scripts.LEAD, keys, [process, ttl_s])
        return Leadership(epoch=epoch, left_s=left_ms / 1000) if epoch else None

    @translated
    def lane_queues(self) -> list[LaneQueue]:
        """Return the lanes with calls that are in no batch yet."""
        lanes = cast("dict[bytes, bytes]", self._redis.hgetall(self._batches("lanes")))
        names = sorted(lane_id.decode() for lane_id in lanes)
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            for lane_id in names:
                lane, queue, _, _ = self._lane_keys(lane_id)
                pipe.hmget(lane, "bytes", "newest", "held_until", "most_calls")
                pipe.zcard(queue)
                pipe.zrange(queue, 0, 0, withscores=True)
            time, *answers = pipe.execute()
        now, queues, unused = seconds(time), [], []
        triples = zip(answers[::3], answers[1::3], answers[2::3], strict=True)
        for name, (fields, calls, first) in zip(names, triples, strict=True):
            if not calls:
                if not any(fields):
                    # Its own fields have expired.
                    unused.append(name)
                continue
            size, newest, held_until, most = (float(field or 0) for field in fields)
            record = decoded(lanes[name.encode()], LaneRecord, "a lane")
            queues.append(
                LaneQueue(
                    lane_id=name,
                    record=record,
                    calls=calls,
                    bytes=int(size),
                    oldest_s=max(0.0, now - first[0][1]) if first else 0.0,
                    newest_s=max(0.0, now - newest),
                    held_s=max(0.0, held_until - now),
                    most_calls=int(most) or None,
                )
            )
        if unused:
            self._forget_lanes(unused)
        return queues

    def _forget_lanes(self, lane_ids: Sequence[str]) -> None:
        """Forget lanes that have neither calls nor batches."""
        in_use = {batch.lane_id for batch in self.batches()}
        for lane_id in lane_ids:
            if lane_id not in in_use:
                lane, queue, _, _ = self._lane_keys(lane_id)
                keys = [self._batches("lanes"), lane, queue]
                self._call(batch_scripts.FORGET_LANE, keys, [lane_id])

    @translated
    def lane(self, lane_id: str) -> LaneRecord | None:
        """Return a lane's record, or None if it is not known."""
        held = cast("bytes | None", self._redis.hget(self._batches("lanes"), lane_id))
        return None if held is None else decoded(held, LaneRecord, "a lane")

    @translated
    def in_no_batch(self, items: Sequence[str]) -> set[str]:
        """Return those of some calls that are gathered, and in no batch."""
        names = cast("list[bytes]", self._redis.hkeys(self._batches("lanes")))
        if not names or not items:
            return set()
        with self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hmget(self._lane_keys(name.decode())[3], list(items))
            answers = pipe.execute()
        return {
            item
            for held in answers
            for item, task in zip(items, held, strict=True)
            if task is not None
        }

    @translated
    def next_batch_number(self) -> int:
        """Return a number that no other batch has."""
        return self._redis.incr(self._batches("number"))

    @translated
    def fill_batch(
        self, epoch: int, batch: BatchRecord, *, most_calls: int, most_bytes: int
    ) -> FilledBatch | None:
        """Move some calls of its lane to a batch; None if another process leads."""
        return self._fill(epoch, batch, [most_calls, most_bytes, _PAGE, 0])

    @translated
    def empty_lane(self, epoch: int, lane_id: str) -> bool:
        """Make the branches of some calls of a lane ready instead; return whether all are, or may not be."""
        none = BatchRecord(number=0, lane_id=lane_id)
        filled = self._fill(epoch, none, [1, 0, _PAGE, 1])
        return filled is None or filled.is_full

    def _fill(self, epoch: int, batch: BatchRecord, how: list[int]) -> FilledBatch | None:
        leader, ready = self._batches("leader"), self._ready
        keys = [leader, *self._lane_keys(batch.lane_id), *self._batch_keys(batch.number), ready]
        args = [epoch, self._ttl_s, run_keys(self._prefix), *how]
        answer = self._call(batch_scripts.FILL, keys, args)
        if answer is None:
            return None
        calls, size, is_full, first = answer
        return FilledBatch(
            calls=calls, bytes=size, is_full=bool(is_full), first_item=first.decode()
        )

    @translated
    def put_batch(self, epoch: int, batch: BatchRecord, *, has_lines: bool = True) -> bool:
        """Write a batch; return whether this process leads.

        Args:
            epoch: Of its leadership.
            batch: The batch.
            has_lines: Whether the lines are still needed.
        """
        keys = [self._batches("leader"), self._batches("all")]
        if not has_lines:
            self._drop_line_files(batch.number)
            keys.append(self._batch_keys(batch.number)[1])
        record = msgspec.json.encode(batch)
        args = [epoch, batch.number, record, self._ttl_s]
        return bool(self._call(batch_scripts.PUT_BATCH, keys, args))

    def _drop_line_files(self, number: int) -> None:
        """Delete the files of the lines of a batch; one that stays goes with its run."""
        if self._blobs.root is None:
            return
        members, lines, _ = self._batch_keys(number)
        for page in self._pages(lines):
            for item, held in page:
                packed = held.partition(b" ")[2]
                if packed.startswith(b"@"):
                    task = self._field(members, item.decode())
                    if task is not None:
                        run_id = task.decode().partition("/")[0]
                        self._blobs.drop(line_name(item.decode(), run_id), packed)

    @translated
    def end_batch(self, epoch: int, number: int) -> bool:
        """Forget a batch; return whether this process leads."""
        keys = [self._batches("leader"), self._batches("all"), *self._batch_keys(number)]
        return bool(self._call(batch_scripts.PUT_BATCH, keys, [epoch, number, "", self._ttl_s]))

    @translated
    def batches(self) -> list[BatchRecord]:
        """Return the batches, by number."""
        held = cast("dict[bytes, bytes]", self._redis.hgetall(self._batches("all")))
        records = [decoded(record, BatchRecord, "a batch") for record in held.values()]
        return sorted(records, key=lambda batch: batch.number)

    def batch_lines(
        self, number: int, *, first_item: str
    ) -> Iterator[tuple[str, bytes | StoredDataError]]:
        """Yield the calls of a batch that have no result yet, with their lines, or why there is none.

        That of ``first_item`` comes first, if it has a line. A call whose line has no trace is left out.
        """
        members, lines, _ = self._batch_keys(number)
        held = self._field(lines, first_item)
        if held is not None:
            yield from self._lines_of(members, {first_item.encode(): held})
        seen = {first_item.encode()}
        for page in self._pages(lines, count=_LINES):
            # A scan may give a field twice.
            new = {item: held for item, held in page if item not in seen}
            seen.update(new)
            yield from self._lines_of(members, new)

    @translated
    def _field(self, key: str, field: str) -> bytes | None:
        return cast("bytes | None", self._redis.hget(key, field))

    def _lines_of(
        self, members: str, page: dict[bytes, bytes]
    ) -> Iterator[tuple[str, bytes | StoredDataError]]:
        for (item, held), task in zip(page.items(), self._fields(members, list(page)), strict=True):
            if task is not None:
                name = line_name(item.decode(), task.decode().partition("/")[0])
                try:
                    yield item.decode(), self._line(name, held)
                except StoredDataError as error:
                    yield item.decode(), error

    @translated
    def _fields(self, key: str, fields: list[bytes]) -> list[bytes | None]:
        return cast("list[bytes | None]", self._redis.hmget(key, fields)) if fields else []

    def _line(self, name: str, held: bytes) -> bytes:
        packed = held.partition(b" ")[2]
        if packed.startswith(b"@"):
            packed = self._blobs.load(name, packed)
        try:
            return zlib.decompress(packed)
        except zlib.error as error:
            raise StoredDataError(f"a line of a batch in the store is damaged ({error})") from None

    @translated
    def batch_members(self, number: int, items: Sequence[str]) -> list[Member]:
        """Return those of some items that have no result yet, with their branches."""
        if not items:
            return []
        members = self._batch_keys(number)[0]
        tasks = cast("list[bytes | None]", self._redis.hmget(members, list(items)))
        return [
            Member(item, BranchId.parse(task.decode()))
            for item, task in zip(items, tasks, strict=True)
            if task is not None
        ]

    def members_left(self, number: int) -> Iterator[list[Member]]:
        """Yield pages of the calls of a batch that have no result yet."""
        for page in self._pages(self._batch_keys(number)[0]):
            yield [Member(item.decode(), BranchId.parse(task.decode())) for item, task in page]

    @translated
    def unpack(self, epoch: int, number: int, members: Sequence[Member]) -> None:
        """Take calls out of a batch that the provider does not have; nothing once another process leads."""
        keys = [self._batches("leader"), *self._batch_keys(number)]
        for start in range(0, len(members), _AT_ONCE):
            args: list[Any] = [epoch]
            for member in members[start : start + _AT_ONCE]:
                args += [member.item, member.branch_id.run_id]
            self._call(batch_scripts.UNPACK, keys, args)

    @translated
    def batch_runs(self, number: int) -> dict[str, int]:
        """Return the runs of a batch, and how many of its calls each has without a result."""
        held = cast("dict[bytes, bytes]", self._redis.hgetall(self._batch_keys(number)[2]))
        return {
            run_id.decode(): int(left)
            for run_id, left in held.items()
            if not run_id.startswith(b":") and int(left) > 0
        }

    @translated
    def land(self, epoch: int, number: int, requests: Sequence[LandRequest]) -> int | None:
        """Keep the results of calls, and make their branches ready; None if another process leads.

        Returns:
            How many branches waited for theirs.
        """
        members, _, runs = self._batch_keys(number)
        keys = [self._batches("leader"), members, runs, self._ready]
        landed = 0
        for start in range(0, len(requests), _AT_ONCE):
            args: list[Any] = [epoch, self._ttl_s, run_keys(self._prefix)]
            for request in requests[start : start + _AT_ONCE]:
                of = request.member.branch_id
                args += [request.member.item, of.run_id, of.stage, of.shard, of.position]
                args.append(request.result)
            answer = self._call(batch_scripts.LAND, keys, args)
            if answer is None:
                return None
            landed += answer
        return landed

    @translated
    def lane_scarce(self, epoch: int, lane_id: str, *, held_s: float, most_calls: int = 0) -> bool:
        """Note that the provider of a lane has no room for a while; return whether this process leads.

        Args:
            epoch: Of its leadership.
            lane_id: The lane.
            held_s: Seconds for which no batch is to be made; 0 if there is room again: a limit of the
                calls then rises by a quarter.
            most_calls: The most calls in the next batch; 0 leaves it as it is.
        """
        keys = [self._batches("leader"), self._lane_keys(lane_id)[0]]
        args = [epoch, self._ttl_s, held_s, most_calls]
        return bool(self._call(batch_scripts.SCARCE, keys, args))
