"""The branches of the Redis store."""

from __future__ import annotations

import operator
from collections import defaultdict
from typing import TYPE_CHECKING, Any, TypeVar, cast

from fanout.core.errors import LostDataError
from fanout.core.records import QUANTITIES
from fanout.core.state import BeginReply, RecordReply
from fanout.stores import codec
from fanout.stores.blobs.base import blob_name
from fanout.stores.redis import branch_scripts
from fanout.stores.redis.base import translated
from fanout.stores.redis.blob_references import RedisBlobReferences

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

    from fanout.core.ids import BranchId, ShardId
    from fanout.core.records import Outcome, Usage
    from fanout.core.state import BeginRequest, CheckpointRequest, RecordRequest

__all__ = ["RedisBranches"]

# After so many begins without an end, a branch begins again only alone: if the worker dies, this
# branch is known to be the cause.
_ALONE_AFTER = 2
# In place of a model's name: what kept answers had cost.
_SAVED = ""
_Request = TypeVar("_Request")
_Reply = TypeVar("_Reply")
# A script blocks the server while it runs: a call for this many branches takes about 1 ms.
_AT_ONCE = 200


def _ask_by_key(
    asked: Sequence[_Request],
    key_of: Callable[[_Request], Hashable],
    ask: Callable[[list[_Request]], list[_Reply]],
) -> list[_Reply]:
    """Ask once for all requests with the same key; return the replies in order."""
    groups: defaultdict[Hashable, list[int]] = defaultdict(list)
    for number, each in enumerate(asked):
        groups[key_of(each)].append(number)
    replies: dict[int, _Reply] = {}
    for numbers in groups.values():
        for start in range(0, len(numbers), _AT_ONCE):
            some = numbers[start : start + _AT_ONCE]
            replies.update(zip(some, ask([asked[number] for number in some]), strict=True))
    return [replies[number] for number in range(len(asked))]


def _begin_key(request: BeginRequest) -> Hashable:
    return request.branch_id.shard_id, request.holder, request.lasts_s, request.beats_for_s


def _checkpoint_key(request: CheckpointRequest) -> Hashable:
    return request.branch_id.shard_id, request.holder, request.lasts_s


def _record_key(request: RecordRequest) -> Hashable:
    return request.branch_id.shard_id


def _record_args(request: RecordRequest) -> list[Any]:
    outcome = request.outcome
    return [
        request.branch_id.position,
        codec.encode_outcome(outcome),
        outcome.kind or (_kept_as(outcome) if outcome.is_cut or outcome.is_rejected else ""),
        codec.latency_bucket(outcome),
        outcome.elapsed_s,
        outcome.usage.calls,
    ]


def _failures(requests: Sequence[RecordRequest]) -> str:
    """Return the numbers of the branches that failed, each with its opening, as the script takes them."""
    if requests[0].branch_id.stage:
        # A retry discards the stages of the reduces.
        return ""
    return " ".join(
        f"{number} {request.opening!r}"
        for number, request in enumerate(requests, 1)
        if request.outcome.kind is not None and request.opening is not None
    )


def _kept_as(outcome: Outcome) -> str:
    """Return what the script has to count of an answer that has something to it."""
    marks = {"cut": outcome.is_cut, "rejected": outcome.is_rejected}
    return " ".join(mark for mark, is_there in marks.items() if is_there)


_quantities_of = operator.attrgetter(*QUANTITIES)


def _quantities(usage: Usage) -> list[float | str]:
    """Return the quantities of a usage as the script takes them."""
    return [
        _as_unknown(usage, name) if count is None else count
        for name, count in zip(QUANTITIES, _quantities_of(usage), strict=True)
    ]


def _as_unknown(usage: Usage, name: str) -> str:
    """Return a quantity that is unknown: ``>`` and the known part of it."""
    return f">{usage.known(name)!r}" if usage.at_least else ">0"


def _used(usages: Sequence[Usage]) -> Iterator[list[Any]]:
    """Yield the name of each quantity that is not 0 in all usages, with its values for the script."""
    columns = zip(*map(_quantities_of, usages), strict=True)
    for name, column in zip(QUANTITIES, columns, strict=True):
        if None in column:
            pairs = zip(usages, column, strict=True)
            yield [name, *(_as_unknown(of, name) if n is None else n for of, n in pairs)]
        elif any(column):
            yield [name, *column]


class RedisBranches(RedisBlobReferences):
    """The claims and outcomes of branches."""

    @translated
    def take_parked(self, run_id: str) -> list[BranchId]:
        """Remove and return the branches that were parked while the run was paused."""
        key = f"{self._run(run_id)}:parked"
        with self._redis.pipeline() as pipe:
            pipe.smembers(key)
            pipe.delete(key)
            members, _ = pipe.execute()
        return [codec.decode_parked(run_id, member) for member in sorted(members)]

    @translated
    def begin_all(self, requests: Sequence[BeginRequest]) -> list[BeginReply]:
        """Ask whether branches may make their calls, and count the begins; reply in order.

        While the holder of a branch is alive, no other delivery may begin the branch until the
        holder releases it: a second worker may get a copy of the message, for example after the
        server was unreachable. A worker may treat a holder as dead only after a later heartbeat of
        its own.
        """
        return _ask_by_key(requests, _begin_key, self._begin_some)

    def _begin_some(self, requests: list[BeginRequest]) -> list[BeginReply]:
        first = requests[0]
        run = self._run(first.branch_id.run_id)
        keys = [run, *self._shard_keys(first.branch_id), f"{run}:parked", self._holders]
        args: list[Any] = [self._ttl_s, _ALONE_AFTER, int(first.branch_id.stage == 0)]
        args += [first.holder, first.lasts_s, first.beats_for_s]
        for request in requests:
            parked = codec.encode_parked(request.branch_id)
            args += [request.branch_id.position, request.token, int(request.is_alone), parked]
        flat = self._call(branch_scripts.BEGIN, keys, args)
        opening = float(flat.pop())
        pairs = zip(flat[::2], flat[1::2], strict=True)
        return [
            BeginReply(verdict=verdict.decode(), deliveries=n, opening=opening)
            for verdict, n in pairs
        ]

    @translated
    def release_claim(self, branch_id: BranchId, *, token: str, counts: bool = False) -> None:
        """Release the claim of a delivery that was handed back before its call ended, or died.

        Args:
            branch_id: The branch.
            token: The token of the delivery; the claim of another delivery stays.
            counts: Whether the begin still counts, so that a branch that hangs everywhere ends.
        """
        keys = [self._shard(branch_id, "state"), self._shard(branch_id, "checkpoints")]
        self._call(
            branch_scripts.RELEASE_CLAIM, keys, [branch_id.position, token, 0 if counts else -1]
        )

    @translated
    def checkpoint_all(self, requests: Sequence[CheckpointRequest]) -> list[BeginReply]:
        """Write how far branches are; reply whether they may make their next calls, in order.

        A checkpoint replaces the one before. It is deleted with the branch's outcome, or with the
        outcomes of its shard. Nothing is written if the delivery has lost its claim (``held``), or
        the branch has ended (``done``, ``gone``).
        """
        return _ask_by_key(requests, _checkpoint_key, self._checkpoint_some)

    def _checkpoint_some(self, requests: list[CheckpointRequest]) -> list[BeginReply]:
        first = requests[0]
        of = first.branch_id
        keys = [self._run(of.run_id), *self._shard_keys(of), self._shard(of, "checkpoints")]
        args: list[Any] = [self._ttl_s, int(of.stage == 0), first.holder, first.lasts_s]
        for request in requests:
            args += [request.branch_id.position, request.token, request.checkpoint]
        verdicts = self._call(branch_scripts.CHECKPOINT, keys, args)
        return [BeginReply(verdict=verdict.decode()) for verdict in verdicts]

    @translated
    def checkpoints(self, branch_ids: Sequence[BranchId]) -> list[bytes | None]:
        """Return the last checkpoints of branches that have not ended, in order; None for none."""
        with self._redis.pipeline(transaction=False) as pipe:
            for branch_id in branch_ids:
                pipe.hget(self._shard(branch_id, "checkpoints"), str(branch_id.position))
            return cast("list[bytes | None]", pipe.execute())

    @translated
    def record_all(self, requests: Sequence[RecordRequest]) -> list[RecordReply]:
        """Write the outcomes of branches; only the first of each is kept and counted.

        A failure of before a retry is not: see ``RecordRequest.opening``.
        """
        return _ask_by_key(requests, _record_key, self._record_some)

    def _record_some(self, requests: list[RecordRequest]) -> list[RecordReply]:
        first = requests[0]
        keys = [
            self._run(first.branch_id.run_id),
            self._stage(first.branch_id),
            *self._shard_keys(first.branch_id)[:2],
            self._totals,
        ]
        if any(request.has_checkpoint for request in requests):
            keys.append(self._shard(first.branch_id, "checkpoints"))
        used = list(_used([request.outcome.usage for request in requests]))
        args: list[Any] = [self._ttl_s, len(requests), len(used), _failures(requests)]
        for request in requests:
            args += _record_args(request)
        for column in used:
            args += column
        for number, request in enumerate(requests, 1):
            for model, usage in request.usage_of.items():
                args += [number, model, usage.calls, *_quantities(usage)]
            saved = request.outcome.saved
            if saved.calls:
                args += [number, _SAVED, saved.calls, *_quantities(saved)]
        flat = self._call(branch_scripts.RECORD, keys, args)
        return [
            RecordReply(first=first == 1, ended=ended, is_late=first < 0)
            for first, ended in zip(flat[::2], flat[1::2], strict=True)
        ]

    @translated
    def outcomes(self, shard_id: ShardId) -> dict[int, Outcome]:
        """Return the outcomes of a shard so far, by position."""
        key = self._shard(shard_id, "out")
        with self._redis.pipeline(transaction=False) as pipe:
            # In this order, as compaction deletes the live outcomes.
            pipe.hgetall(self._shard(shard_id, "live"))
            pipe.get(key)
            live, held = pipe.execute()
        if held is None:
            return {int(position): codec.decode_outcome(data) for position, data in live.items()}
        try:
            blob = self._blobs.load(blob_name(shard_id, "out"), held)
        except LostDataError:
            if self._held(key) == held:
                raise
            # A retry has reopened the shard since the read.
            return self.outcomes(shard_id)
        return codec.decode_outcomes(blob)

    @translated
    def ended_positions(self, shard_id: ShardId) -> set[int]:
        """Return which branches of a shard have an outcome; none once it is compacted."""
        keys = cast("list[bytes]", self._redis.hkeys(self._shard(shard_id, "live")))
        return set(map(int, keys))

    @translated
    def some_outcomes(self, shard_id: ShardId, positions: Sequence[int]) -> dict[int, Outcome]:
        """Return the outcomes of some branches of a shard that is not compacted, by position."""
        if not positions:
            return {}
        key = self._shard(shard_id, "live")
        found = cast("list[bytes | None]", self._redis.hmget(key, list(map(str, positions))))
        return {
            position: codec.decode_outcome(data)
            for position, data in zip(positions, found, strict=True)
            if data is not None
        }

    @translated
    def compact(
        self, shard_id: ShardId, outcomes: dict[int, Outcome], *, opening: float | None = None
    ) -> bool:
        """Replace the outcomes of a finished shard by one compressed blob; return whether it has one now.

        With an ``opening`` (RunRecord.opening), not if a retry has reopened the run since: it may have
        reset the shard.
        """
        run_id, name = shard_id.run_id, blob_name(shard_id, "out")
        live, out, state = self._shard_keys(shard_id)
        held = self._keep(run_id, name, codec.encode_outcomes(outcomes))
        replaced = (live, state, self._shard(shard_id, "checkpoints"))
        return self._put_blob(run_id, out, name, held, replaces=replaced, opening=opening)
