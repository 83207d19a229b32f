"""The batch lane of the Redis store: gathered branches, and the batches that are made of their calls.

Keys under ``{prefix}``, beside ``{prefix}:run:{id}:gathered`` (the branches of a run that wait for a call,
each with its mark) and ``{prefix}:run:{id}:batches`` (the batches with calls of a run, for views):

* ``:batches:leader``: the process that makes batches, and its epoch; ``:batches:number``: a counter;
* ``:batches:lanes``: the lanes; ``:batches:lane:L`` (bytes, times), ``:queue`` (the items by time),
  ``:lines`` (their lines) and ``:branches`` (their branches): the calls of lane L that are in no batch;
* ``:batches:all``: the batches; ``:batches:batch:B:members`` (items and their branches), ``:lines`` (until
  the provider has them) and ``:runs`` (how many of its calls each run has left);
* ``:batches:ready``: branches to publish; ``:batches:runs``: the runs with gathered branches.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from typing import TYPE_CHECKING, Any, cast

import msgspec

from fanout.core.errors import StoredDataError
from fanout.core.gathered import (
    BatchRecord,
    FilledBatch,
    GatherReply,
    Landing,
    LaneQueue,
    LaneRecord,
    Leadership,
    Member,
    Prepared,
    RunBatch,
)
from fanout.core.ids import BranchId, ShardId
from fanout.core.queue_names import backlog_of
from fanout.stores import codec
from fanout.stores.redis import batch_scripts
from fanout.stores.redis.base import run_keys, seconds, translated
from fanout.stores.redis.blob_references import RedisBlobReferences

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from fanout.core.gathered import GatherRequest, LandRequest

__all__ = ["RedisBatchLanes"]

# Level 1 halves JSON text at some 100 MB/s.
_LEVEL = 1
# Lines above this many bytes get a file, where there is a storage.
_LARGE_LINE = 32_000
# A script blocks the server while it runs: a call for this many branches takes about 1 ms.
_AT_ONCE = 200
# Each is small, and is read in pages.
_PAGE = 500
# Lines are larger.
_LINES = 100


def _line_name(item: str, run_id: str) -> str:
    return f"{run_id}/{item}.line"


class RedisBatchLanes(RedisBlobReferences):
    """The batch lane."""

    def _batches(self, *parts: str) -> str:
        return ":".join((self._prefix, "batches", *parts))

    def _lane_keys(self, lane_id: str) -> list[str]:
        lane = self._batches("lane", lane_id)
        return [lane, f"{lane}:queue", f"{lane}:lines", f"{lane}:branches"]

    def _batch_keys(self, number: int) -> list[str]:
        return [self._batches("batch", str(number), part) for part in ("members", "lines", "runs")]

    @property
    def _ready(self) -> str:
        return self._batches("ready")

    @translated
    def gather_all(self, requests: Sequence[GatherRequest]) -> list[GatherReply]:
        """Gather the next calls of branches, and release their claims; reply in order.

        Nothing is written for a branch that has ended, has lost its claim, or must not call. A branch
        that is gathered twice for one call waits for it once.
        """
        groups: defaultdict[tuple[ShardId, str], list[int]] = defaultdict(list)
        for number, each in enumerate(requests):
            groups[each.branch_id.shard_id, each.lane_id].append(number)
        replies: dict[int, GatherReply] = {}
        for numbers in groups.values():
            for start in range(0, len(numbers), _AT_ONCE):
                some = numbers[start : start + _AT_ONCE]
                asked = [requests[number] for number in some]
                replies.update(zip(some, self._gather_some(asked), strict=True))
        return [replies[number] for number in range(len(requests))]

    def _gather_some(self, requests: list[GatherRequest]) -> list[GatherReply]:
        first = requests[0]
        of = first.branch_id
        run = self._run(of.run_id)
        keys = [run, *self._shard_keys(of), f"{run}:gathered", self._batches("lanes")]
        keys += [*self._lane_keys(first.lane_id), self._batches("runs")]
        args: list[Any] = [self._ttl_s, int(of.stage == 0), of.run_id, first.lane_id, first.lane]
        for request in requests:
            branch_id = request.branch_id
            args += [branch_id.position, request.token, codec.encode_parked(branch_id)]
            args += [branch_id.task_id, request.item, self._held_line(request)]
        flat = self._call(batch_scripts.GATHER, keys, args)
        return [
            GatherReply(verdict=verdict.decode(), settled=settled)
            for verdict, settled in zip(flat[::2], flat[1::2], strict=True)
        ]

    def _held_line(self, request: GatherRequest) -> bytes:
        """Return a line as the store holds it: its length, and the line or a reference to a file."""
        line, run_id = request.line, request.branch_id.run_id
        held = zlib.compress(line, _LEVEL)
        if len(line) > _LARGE_LINE and self._blobs.root is not None:
            held = self._keep(run_id, _line_name(request.item, run_id), held)
        return b"%d %b" % (len(line), held)

    @translated
    def prepared(self, branch_ids: Sequence[BranchId]) -> list[Prepared]:
        """Return what batches have answered to the last calls of branches, in order."""
        with self._redis.pipeline(transaction=False) as pipe:
            for branch_id in branch_ids:
                pipe.hget(self._shard(branch_id, "checkpoints"), f"p:{branch_id.position}")
                pipe.hexists(self._shard(branch_id, "state"), f"r:{branch_id.position}")
            answers = pipe.execute()
        prepared = []
        for held, promoted in zip(answers[::2], answers[1::2], strict=True):
            item, _, result = (held or b"").partition(b" ")
            prepared.append(Prepared(item=item.decode(), result=result, is_promoted=bool(promoted)))
        return prepared

    @translated
    def gathered(self, run_id: str) -> int:
        """Return how many branches of a run wait for a call of a batch."""
        return self._redis.hlen(f"{self._run(run_id)}:gathered")

    def gathered_marks(self, run_id: str) -> Iterator[list[tuple[str, str]]]:
        """Yield pages of the gathered branches of a run, as fields, with the items they wait for."""
        for page in self._pages(f"{self._run(run_id)}:gathered"):
            waiting = (pair for pair in page if not pair[1].startswith(b"ready:"))
            yield [(field.decode(), item.decode()) for field, item in waiting]

    def _pages(self, key: str, count: int = _PAGE) -> Iterator[list[tuple[bytes, bytes]]]:
        """Yield the fields of a hash; a field that is there all the time at least once."""
        cursor = 0
        while True:
            cursor, page = self._page(key, cursor, count)
            yield list(page.items())
            if not cursor:
                return

    @translated
    def _page(self, key: str, cursor: int, count: int) -> tuple[int, dict[bytes, bytes]]:
        return cast("tuple[int, dict[bytes, bytes]]", self._redis.hscan(key, cursor, count=count))

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
        now, queues = seconds(time), []
        triples = zip(answers[::3], answers[1::3], answers[2::3], strict=True)
        for name, (fields, calls, first) in zip(names, triples, strict=True):
            if not calls:
                continue
            size, newest, held_until, most = (float(field or 0) for field in fields)
            record = _decoded(lanes[name.encode()], LaneRecord, "a lane")
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
        return queues

    @translated
    def lane(self, lane_id: str) -> LaneRecord | None:
        """Return a lane's record, or None if it is not known."""
        held = cast("bytes | None", self._redis.hget(self._batches("lanes"), lane_id))
        return None if held is None else _decoded(held, LaneRecord, "a lane")

    @translated
    def next_batch_number(self) -> int:
        """Return a number that no other batch has."""
        return self._redis.incr(self._batches("number"))

    @translated
    def fill_batch(
        self, epoch: int, batch: BatchRecord, *, most_calls: int, most_bytes: int
    ) -> FilledBatch | None:
        """Move some calls of its lane to a batch; None if another process leads."""
        leader, ready = self._batches("leader"), self._ready
        keys = [leader, *self._lane_keys(batch.lane_id), *self._batch_keys(batch.number), ready]
        args = [epoch, self._ttl_s, run_keys(self._prefix), most_calls, most_bytes, _PAGE]
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
                    task = self._field(members, item.decode()) or b""
                    run_id = task.decode().partition("/")[0]
                    self._blobs.drop(_line_name(item.decode(), run_id), packed)

    @translated
    def end_batch(self, epoch: int, number: int) -> bool:
        """Forget a batch; return whether this process leads."""
        keys = [self._batches("leader"), self._batches("all"), *self._batch_keys(number)]
        return bool(self._call(batch_scripts.PUT_BATCH, keys, [epoch, number, "", self._ttl_s]))

    @translated
    def batches(self) -> list[BatchRecord]:
        """Return the batches, by number."""
        held = cast("dict[bytes, bytes]", self._redis.hgetall(self._batches("all")))
        records = [_decoded(record, BatchRecord, "a batch") for record in held.values()]
        return sorted(records, key=lambda batch: batch.number)

    def batch_lines(self, number: int, *, first_item: str) -> Iterator[bytes]:
        """Yield the lines of a batch, that of ``first_item`` first. Raises StoredDataError."""
        members, lines, _ = self._batch_keys(number)
        yield self._line(first_item, members, self._field(lines, first_item))
        seen = {first_item}
        for page in self._pages(lines, count=_LINES):
            for field, held in page:
                item = field.decode()
                # A scan may give a field twice.
                if item not in seen:
                    seen.add(item)
                    yield self._line(item, members, held)

    @translated
    def _field(self, key: str, field: str) -> bytes | None:
        return cast("bytes | None", self._redis.hget(key, field))

    def _line(self, item: str, members: str, held: bytes | None) -> bytes:
        if held is None:
            raise StoredDataError("the server has lost a line of a batch")
        packed = held.partition(b" ")[2]
        if packed.startswith(b"@"):
            task = self._field(members, item) or b""
            packed = self._blobs.load(_line_name(item, task.decode().partition("/")[0]), packed)
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
    def release_gathered(
        self,
        run_id: str,
        marks: Sequence[tuple[str, str]],
        *,
        result: bytes = b"",
        promotes: bool = False,
    ) -> int:
        """Make gathered branches ready without the result of their call.

        Args:
            run_id: Their run.
            marks: Some of ``gathered_marks``.
            result: What is known of the call, in place of its result.
            promotes: Whether their next calls are not to be gathered.

        Returns:
            How many still waited.

        Raises:
            UnknownRunError: There is no such run.
        """
        run = self._run(run_id)
        keys = [run, f"{run}:gathered", self._ready]
        released = 0
        for start in range(0, len(marks), _AT_ONCE):
            args: list[Any] = [run_id, self._ttl_s, result, int(promotes), f"{run}:s"]
            for field, item in marks[start : start + _AT_ONCE]:
                args += [field, item]
            answer = self._call(batch_scripts.RELEASE, keys, args)
            self._require(run_id, answer >= 0)
            released += answer
        return released

    @translated
    def ready_branches(self, most: int) -> list[Landing]:
        """Return some branches that are to be published, the oldest first."""
        held = cast("list[bytes]", self._redis.zrange(self._ready, 0, most - 1))
        ready = []
        for member in held:
            task, _, item = member.decode().partition(" ")
            ready.append(Landing(branch_id=BranchId.parse(task), item=item))
        return ready

    @translated
    def still_ready(self, landings: Sequence[Landing]) -> list[BranchId]:
        """Return those of some ready branches that no message can process yet."""
        with self._redis.pipeline(transaction=False) as pipe:
            for one in landings:
                key = f"{self._run(one.branch_id.run_id)}:gathered"
                pipe.hget(key, codec.encode_parked(one.branch_id))
            marks = pipe.execute()
        return [
            one.branch_id
            for one, mark in zip(landings, marks, strict=True)
            if mark == f"ready:{one.item}".encode()
        ]

    @translated
    def published(self, landings: Sequence[Landing]) -> None:
        """Forget ready branches: they have messages again, or are gone."""
        for start in range(0, len(landings), _AT_ONCE):
            args: list[Any] = [run_keys(self._prefix)]
            for one in landings[start : start + _AT_ONCE]:
                of = one.branch_id
                args += [f"{of.task_id} {one.item}", of.run_id, codec.encode_parked(of), one.item]
            self._call(batch_scripts.PUBLISHED, [self._ready], args)

    @translated
    def messages_behind(self, run_ids: Collection[str]) -> int:
        """Return how many messages of runs wait for their turn in the queue of branches."""
        with self._redis.pipeline(transaction=False) as pipe:
            for run_id in run_ids:
                pipe.llen(backlog_of(run_id))
            return sum(pipe.execute())

    @translated
    def count_ready(self) -> int:
        """Return how many branches are to be published."""
        return self._redis.zcard(self._ready)

    @translated
    def gathered_runs(self) -> list[str]:
        """Return the runs with gathered branches."""
        held = cast("set[bytes]", self._redis.smembers(self._batches("runs")))
        return sorted(run_id.decode() for run_id in held)

    @translated
    def drop_gathered_run(self, run_id: str) -> bool:
        """Forget a run without gathered branches; return whether it was forgotten."""
        keys = [self._batches("runs"), f"{self._run(run_id)}:gathered"]
        return bool(self._call(batch_scripts.DROP, keys, [run_id]))

    @translated
    def lane_scarce(self, epoch: int, lane_id: str, *, held_s: float, most_calls: int = 0) -> bool:
        """Note that the provider of a lane has no room for a while; return whether this process leads.

        Args:
            epoch: Of its leadership.
            lane_id: The lane.
            held_s: Seconds for which no batch is to be made; 0 if there is room again.
            most_calls: The most calls in the next batch; 0 for any number.
        """
        keys = [self._batches("leader"), self._lane_keys(lane_id)[0]]
        args = [epoch, self._ttl_s, held_s, most_calls]
        return bool(self._call(batch_scripts.SCARCE, keys, args))

    @translated
    def show_batches(self, run_id: str, batches: Sequence[RunBatch]) -> None:
        """Write the batches with calls of a run, for views; those before are replaced."""
        key, run = f"{self._run(run_id)}:batches", self._run(run_id)
        self._call(batch_scripts.SHOW, [run, key], [msgspec.json.encode(batches), self._ttl_s])

    @translated
    def run_batches(self, run_id: str) -> list[RunBatch]:
        """Return the batches with calls of a run, as they were a few seconds ago."""
        held = cast("bytes | None", self._redis.get(f"{self._run(run_id)}:batches"))
        return [] if held is None else _decoded(held, list[RunBatch], "the batches of a run")


def _decoded(held: bytes, kind: Any, what: str) -> Any:
    try:
        return msgspec.json.decode(held, type=kind)
    except msgspec.MsgspecError as error:
        raise StoredDataError(f"{what} in the store is damaged ({error})") from None
