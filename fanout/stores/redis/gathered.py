"""The gathered branches of the Redis store: those that wait for a call of a batch.

Keys under ``{prefix}``, beside ``{prefix}:run:{id}:gathered`` (the branches of a run that wait for a call,
each with its mark) and ``{prefix}:run:{id}:batches`` (the batches with calls of a run, for views):

* ``:batches:leader``: the process that makes batches, and its epoch; ``:batches:number``: a counter;
* ``:batches:lanes``: the lanes; ``:batches:lane:L`` (bytes, times), ``:queue`` (the items by time),
  ``:lines`` (their lines) and ``:branches`` (their branches): the calls of lane L that are in no batch;
* ``:batches:all``: the batches; ``:batches:batch:B:members`` (items and their branches), ``:lines`` (until
  the provider has them) and ``:runs`` (how many of its calls each run has left);
* ``:batches:ready``: branches to publish; ``:batches:runs``: the runs with gathered branches;
* ``:batches:asked``, ``:batches:followed``, ``:batches:joined:KEY``: see ``fanout.stores.redis.joined``.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from typing import TYPE_CHECKING, Any, cast

import msgspec

from fanout.core.errors import StoredDataError
from fanout.core.gathered import GatherReply, Landing, Prepared, RunBatch
from fanout.core.ids import BranchId, ShardId
from fanout.core.queue_names import backlogs_of
from fanout.stores import codec
from fanout.stores.redis import batch_scripts
from fanout.stores.redis.base import run_keys, translated
from fanout.stores.redis.blob_references import RedisBlobReferences

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from fanout.core.gathered import GatherRequest

__all__ = ["RedisGathered", "decoded", "line_name"]

# Level 1 halves JSON text at some 100 MB/s.
_LEVEL = 1
# Lines above this many bytes get a file, where there is a storage.
_LARGE_LINE = 32_000
# A script blocks the server while it runs: a call for this many branches takes about 1 ms.
_AT_ONCE = 200
# Each is small, and is read in pages.
_PAGE = 500


def line_name(item: str, run_id: str) -> str:
    """Return the name of the file of a line."""
    return f"{run_id}/{item}.line"


class RedisGathered(RedisBlobReferences):
    """The branches that wait for a call of a batch."""

    def _batches(self, *parts: str) -> str:
        return "".join((self._prefix, ":batches", *(f":{part}" for part in parts)))

    def _lane_keys(self, lane_id: str) -> list[str]:
        lane = self._batches("lane", lane_id)
        return [lane, f"{lane}:queue", f"{lane}:lines", f"{lane}:branches"]

    def _batch_keys(self, number: int) -> list[str]:
        return [self._batches("batch", str(number), part) for part in ("members", "lines", "runs")]

    @property
    def _joined_prefix(self) -> str:
        return self._batches("joined", "")

    @property
    def _ready(self) -> str:
        return self._batches("ready")

    @translated
    def gather_all(self, requests: Sequence[GatherRequest]) -> list[GatherReply]:
        """Gather the next calls of branches, and release their claims; reply in order.

        A call follows an identical one of another branch, if that leads. Nothing is written for a branch
        that has ended, has lost its claim, or must not call. One that is gathered twice for one call waits
        for it once.
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
        keys = [run, *self._shard_keys(of), self._shard(of, "checkpoints")]
        keys += [f"{run}:gathered", self._batches("lanes")]
        keys += [*self._lane_keys(first.lane_id), self._batches("runs")]
        keys += [self._batches("asked"), self._batches("followed")]
        args: list[Any] = [self._ttl_s, int(of.stage == 0), of.run_id, first.lane_id, first.lane]
        args += [run_keys(self._prefix), self._joined_prefix]
        for request in requests:
            branch_id = request.branch_id
            args += [branch_id.position, request.token, codec.encode_parked(branch_id)]
            args += [branch_id.task_id, request.item, self._held_line(request), request.key]
            args.append(request.joins)
        flat = self._call(batch_scripts.GATHER, keys, args)
        return [
            GatherReply(verdict=verdict.decode(), settled=settled)
            for verdict, settled in zip(flat[::2], flat[1::2], strict=True)
        ]

    def _held_line(self, request: GatherRequest) -> bytes:
        """Return a line as the store holds it: its length, and the line or a reference to a file."""
        line, run_id = request.line, request.branch_id.run_id
        if not line:
            return b""
        held = zlib.compress(line, _LEVEL)
        if len(line) > _LARGE_LINE and self._blobs.root is not None:
            held = self._keep(run_id, line_name(request.item, run_id), held)
        return b"%d %b" % (len(line), held)

    @translated
    def prepared(self, branch_ids: Sequence[BranchId]) -> list[Prepared]:
        """Return what batches have answered to the last calls of branches, in order."""
        with self._redis.pipeline(transaction=False) as pipe:
            for branch_id in branch_ids:
                pipe.hget(self._shard(branch_id, "checkpoints"), f"p:{branch_id.position}")
                marks = [f"r:{branch_id.position}", f"w:{branch_id.position}"]
                pipe.hmget(self._shard(branch_id, "state"), marks)
                pipe.hget(self._run(branch_id.run_id), "reopened_at")
            answers = pipe.execute()
        prepared = []
        for held, marks, since in zip(answers[::3], answers[1::3], answers[2::3], strict=True):
            (promoted, followed), (item, _, result) = marks, (held or b"").partition(b" ")
            prepared.append(
                Prepared(
                    item=item.decode(),
                    result=result,
                    is_promoted=bool(promoted),
                    followed=(followed or b"").decode(),
                    since=(since or b"").decode(),
                )
            )
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
    def release_gathered(
        self,
        epoch: int,
        run_id: str,
        marks: Sequence[tuple[str, str]],
        *,
        result: bytes = b"",
        promotes: bool = False,
    ) -> int:
        """Make gathered branches ready without the result of their call.

        Args:
            epoch: Of the caller's leadership: nothing is done once another process leads.
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
        keys = [self._batches("leader"), run, f"{run}:gathered", self._ready]
        released = 0
        for start in range(0, len(marks), _AT_ONCE):
            args: list[Any] = [epoch, run_id, self._ttl_s, result, int(promotes), f"{run}:s"]
            for field, item in marks[start : start + _AT_ONCE]:
                args += [field, item]
            answer = self._call(batch_scripts.RELEASE, keys, args)
            if answer is None:
                break
            self._require(run_id, answer >= 0)
            released += answer
        return released

    @translated
    def note_late(self, run_id: str) -> bool:
        """Note that some calls of a run cannot wait for a batch; return whether it is new to the run."""
        return bool(self._call(batch_scripts.LATE, [self._run(run_id)], []))

    @translated
    def has_batch_work(self) -> bool:
        """Return whether a call is gathered, or in a batch, or waits for one."""
        parts = ("lanes", "all", "ready", "runs", "asked", "followed")
        return bool(self._redis.exists(*(self._batches(part) for part in parts)))

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
                for backlog in backlogs_of(run_id):
                    pipe.llen(backlog)
            return sum(pipe.execute())

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
    def show_batches(self, run_id: str, batches: Sequence[RunBatch]) -> None:
        """Write the batches with calls of a run, for views; those before are replaced."""
        key, run = f"{self._run(run_id)}:batches", self._run(run_id)
        self._call(batch_scripts.SHOW, [run, key], [msgspec.json.encode(batches), self._ttl_s])

    @translated
    def in_batches(self, run_id: str) -> tuple[int, list[RunBatch]]:
        """Return how many branches of a run wait for batches, and the batches with calls of it.

        The batches are as they were a few seconds ago.
        """
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hlen(f"{self._run(run_id)}:gathered")
            pipe.get(f"{self._run(run_id)}:batches")
            gathered, held = pipe.execute()
        if held is None:
            return gathered, []
        return gathered, decoded(held, list[RunBatch], "the batches of a run")


def decoded(held: bytes, kind: Any, what: str) -> Any:
    """Return a record of the store. Raises StoredDataError."""
    try:
        return msgspec.json.decode(held, type=kind)
    except msgspec.MsgspecError as error:
        raise StoredDataError(f"{what} in the store is damaged ({error})") from None
