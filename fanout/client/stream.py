"""The branches of a run as they end, each once."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from fanout.core.ids import StageId

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.core.records import Outcome, Shard
    from fanout.stores import RedisStore

__all__ = ["EndedBranches"]

# Inputs of shards that are being processed are kept up to so many characters.
_KEPT_CHARS = 64_000_000


class EndedBranches:
    """Reads which branches of a run have ended since it was last asked.

    It reads only shards in which a branch has ended meanwhile, and of those only what is new: an
    ended shard is read once. It holds the positions of what it gave of shards that have not ended,
    and some of their inputs: its memory does not grow with the run.

    Args:
        store: The store of the run.
        run_id: The run.
    """

    def __init__(self, store: RedisStore, run_id: str) -> None:
        self._store = store
        self._stage_id = StageId(run_id, 0)
        # All shards below this one are complete or closed.
        self._first = 0
        self._complete = set[int]()
        # Those that lack outcomes: the end of the run tells what became of these branches.
        self._closed = set[int]()
        self._reopened = set[int]()
        self._reopened_at: float | None = None
        self._given: defaultdict[int, set[int]] = defaultdict(set)
        self._inputs: dict[int, Shard] = {}
        self._chars: dict[int, int] = {}

    def read(self) -> Iterator[tuple[Shard, Outcome]]:
        """Yield the outcomes that are new, each with its shard. Raises BrokerError.

        After an error, the next call goes on where this one ended.
        """
        run = self._store.run(self._stage_id.run_id)
        progress = self._store.progress(self._stage_id)
        numbers = [
            number
            for number in range(self._first, progress.opened)
            if number not in self._complete and number not in self._closed
        ]
        if run.retry:
            self._look_at_reopened(numbers, run.reopened_at)
        for number in numbers:
            if run.retry and number in progress.open and number not in self._reopened:
                # It still has the failures that are to be retried.
                continue
            ended, _, is_compacted = progress.marks.get(number, (0, 0, 1))
            if is_compacted:
                yield from self._whole(number)
                self._close(number)
            elif ended > len(self._given[number]):
                yield from self._part(number)

    def _look_at_reopened(self, numbers: list[int], reopened_at: float | None) -> None:
        """Learn which shards were reset; one that is over without that has nothing to retry."""
        if reopened_at != self._reopened_at:
            self._reopened.clear()
            self._reopened_at = reopened_at
        unknown = [number for number in numbers if number not in self._reopened]
        if unknown:
            self._reopened |= self._store.reopened(self._stage_id, unknown)

    def rest(self) -> Iterator[tuple[Shard, Outcome]]:
        """Yield all other outcomes of a run that has ended. Raises BrokerError."""
        later = range(self._first, self._store.stage(self._stage_id).shards)
        known = self._closed | self._complete
        # Decided now: what is complete is forgotten once all before it is complete, too.
        numbers = [*sorted(self._closed), *(number for number in later if number not in known)]
        for number in numbers:
            yield from self._whole(number)
            self._forget(number)
            self._closed.discard(number)
            self._complete_shard(number)

    def _part(self, number: int) -> Iterator[tuple[Shard, Outcome]]:
        shard_id = self._stage_id.shard(number)
        new = self._store.ended_positions(shard_id) - self._given[number]
        yield from self._new(number, self._store.some_outcomes(shard_id, sorted(new)))

    def _whole(self, number: int) -> Iterator[tuple[Shard, Outcome]]:
        yield from self._new(number, self._store.outcomes(self._stage_id.shard(number)))

    def _new(self, number: int, outcomes: dict[int, Outcome]) -> Iterator[tuple[Shard, Outcome]]:
        given = self._given[number]
        new = sorted(outcomes.keys() - given)
        shard = self._input(number) if new else None
        new.sort(key=lambda position: outcomes[position].ended_at)
        for position in new:
            if shard is not None:
                given.add(position)
                yield shard, outcomes[position]

    def _input(self, number: int) -> Shard:
        shard = self._inputs.pop(number, None) or self._store.shard(self._stage_id.shard(number))
        self._inputs[number] = shard
        self._chars[number] = self._chars.get(number) or _chars(shard)
        while sum(self._chars.values()) > _KEPT_CHARS and len(self._inputs) > 1:
            # The one that was used longest ago.
            self._forget(next(iter(self._inputs)))
        return shard

    def _forget(self, number: int) -> None:
        self._inputs.pop(number, None)
        self._chars.pop(number, None)

    def _close(self, number: int) -> None:
        self._forget(number)
        if len(self._given[number]) < len(self._store.indices(self._stage_id.shard(number))):
            self._closed.add(number)
            self._advance()
        else:
            self._complete_shard(number)

    def _complete_shard(self, number: int) -> None:
        self._given.pop(number, None)
        if number >= self._first:
            self._complete.add(number)
            self._advance()

    def _advance(self) -> None:
        while self._first in self._complete or self._first in self._closed:
            self._complete.discard(self._first)
            self._first += 1


def _chars(shard: Shard) -> int:
    return sum(len(chunk.text) for chunk in shard.chunks)
