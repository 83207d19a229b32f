"""The branches of the Redis store."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, TypeVar

from fanout.core.errors import LostDataError
from fanout.core.latency import bucket_of
from fanout.core.state import BeginReply, ParkedBranch, RecordReply
from fanout.stores import codec
from fanout.stores.blobs.base import blob_name
from fanout.stores.redis.base import translated
from fanout.stores.redis.kept import RedisKept

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

    from fanout.core.ids import BranchId, ShardId
    from fanout.core.records import Outcome
    from fanout.core.state import BeginRequest, RecordRequest

__all__ = ["RedisBranches"]

# A branch that was begun so often without an end is begun again only alone: when its worker dies,
# it is known which branch it was.
_ALONE_AFTER = 2
_Asked = TypeVar("_Asked")
_Said = TypeVar("_Said")
# A script blocks the server while it runs: these take it about a millisecond.
_AT_ONCE = 200


def _of_each(
    asked: Sequence[_Asked],
    key_of: Callable[[_Asked], Hashable],
    ask: Callable[[list[_Asked]], list[_Said]],
) -> list[_Said]:
    """Ask once for all that have a key in common; return what was said of each, in order."""
    groups: defaultdict[Hashable, list[int]] = defaultdict(list)
    for number, each in enumerate(asked):
        groups[key_of(each)].append(number)
    said: dict[int, _Said] = {}
    for numbers in groups.values():
        for start in range(0, len(numbers), _AT_ONCE):
            some = numbers[start : start + _AT_ONCE]
            said.update(zip(some, ask([asked[number] for number in some]), strict=True))
    return [said[number] for number in range(len(asked))]


def _claimant(start: BeginRequest) -> Hashable:
    return start.branch_id.shard_id, start.holder, start.lasts_s, start.beats_for_s


def _shard_of(end: RecordRequest) -> Hashable:
    return end.branch_id.shard_id, end.feed


def _written(end: RecordRequest) -> list[Any]:
    outcome = end.outcome
    usage = outcome.usage
    counts = (usage.input_tokens, usage.output_tokens, usage.cost_usd)
    return [
        end.branch_id.position,
        codec.encode_outcome(outcome),
        outcome.kind or "",
        usage.calls,
        *("" if count is None else count for count in counts),
        bucket_of(outcome.elapsed_s) if outcome.attempts else -1,
        outcome.elapsed_s,
    ]


def _pairs(flat: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Return the items of a list two by two."""
    return zip(flat[::2], flat[1::2], strict=True)


class RedisBranches(RedisKept):
    """The branches of a shard: who makes the call, and how it ended."""

    @translated
    def take_parked(self, run_id: str) -> list[ParkedBranch]:
        """Take away the branches that were not begun because the run is, or was, paused."""
        key = f"{self._run(run_id)}:parked"
        with self._redis.pipeline() as pipe:
            pipe.smembers(key)
            pipe.delete(key)
            members, _ = pipe.execute()
        return [codec.decode_parked(run_id, member) for member in sorted(members)]

    def begin(self, start: BeginRequest) -> BeginReply:
        """Ask whether a branch may make its call, and count it.

        While its holder is alive, nobody else may begin the branch until it is given up: its
        message may come to a second worker although the first has not died, after the server was
        away for instance. A holder is taken for dead only by one that has said since that it is
        alive itself.
        """
        return self.begin_all([start])[0]

    @translated
    def begin_all(self, starts: Sequence[BeginRequest]) -> list[BeginReply]:
        """Begin several branches, in as few steps as can be; return the answers in order."""
        return _of_each(starts, _claimant, self._begin_some)

    def _begin_some(self, starts: list[BeginRequest]) -> list[BeginReply]:
        first = starts[0]
        run = self._run(first.branch_id.run_id)
        keys = [run, *self._shard_keys(first.branch_id), f"{run}:parked", self._holders]
        args: list[Any] = [self._ttl_s, _ALONE_AFTER, int(first.branch_id.stage == 0)]
        args += [first.holder, first.lasts_s, first.beats_for_s]
        for start in starts:
            parked = codec.encode_parked(start)
            args += [start.branch_id.position, start.token, int(start.is_alone), parked]
        said = self._begin(keys=keys, args=args)
        return [BeginReply(verdict=v.decode(), deliveries=n) for v, n in _pairs(said)]

    @translated
    def unbegin(
        self,
        branch_id: BranchId,
        *,
        token: str,
        counts: bool = False,
    ) -> None:
        """Take a begin back: the delivery was handed back without a call's end, or died.

        Where there is nothing of it, nothing is done.

        Args:
            branch_id: The branch.
            token: Of the begin; that of another delivery stays.
            counts: Whether it was a begin all the same: what stands still everywhere must end.
        """
        keys = [self._shard(branch_id, "state")]
        self._unbegin(keys=keys, args=[branch_id.position, token, 0 if counts else -1])

    def record(self, end: RecordRequest) -> RecordReply:
        """Write the outcome of a branch; the first one stands and is counted once."""
        return self.record_all([end])[0]

    @translated
    def record_all(self, ends: Sequence[RecordRequest]) -> list[RecordReply]:
        """Write several outcomes, in as few steps as can be; return what became of each."""
        return _of_each(ends, _shard_of, self._record_some)

    def _record_some(self, ends: list[RecordRequest]) -> list[RecordReply]:
        first = ends[0]
        keys = [
            self._run(first.branch_id.run_id),
            self._stage(first.branch_id),
            *self._shard_keys(first.branch_id),
            self._totals,
        ]
        args: list[Any] = [self._ttl_s, first.feed]
        for end in ends:
            args += _written(end)
        said = self._record(keys=keys, args=args)
        return [
            RecordReply(first=bool(first), next=None if following < 0 else following, ended=ended)
            for first, following, ended in zip(said[::3], said[1::3], said[2::3], strict=True)
        ]

    @translated
    def outcomes(self, shard_id: ShardId) -> dict[int, Outcome]:
        """Return the outcomes of a shard so far, by position."""
        key = self._shard(shard_id, "out")
        with self._redis.pipeline() as pipe:
            pipe.get(key)
            pipe.hgetall(self._shard(shard_id, "live"))
            held, live = pipe.execute()
        if held is None:
            return {int(position): codec.decode_outcome(data) for position, data in live.items()}
        try:
            blob = self._blobs.load(blob_name(shard_id, "out"), held)
        except LostDataError:
            if self._held(key) == held:
                raise
            # A retry has opened the shard again since we asked.
            return self.outcomes(shard_id)
        return codec.decode_outcomes(blob)

    @translated
    def compact(self, shard_id: ShardId, outcomes: dict[int, Outcome]) -> None:
        """Replace the outcomes of a finished shard by one compressed blob."""
        keys = [self._shard(shard_id, part) for part in ("live", "state", "out")]
        name = blob_name(shard_id, "out")
        held = self._keep(shard_id.run_id, name, codec.encode_outcomes(outcomes))
        is_there = self._compact(keys=[*keys, self._run(shard_id.run_id)], args=[held, self._ttl_s])
        self._drop_if_late(keys[2], name, held)
        self._require(shard_id.run_id, is_there)
