"""Which answers a judge compares next, and the order that its verdicts give: a knock-out or a ranking.

The comparisons of a round do not depend on each other. With the same items, seed and verdicts the same
rounds come out, so that a worker finds the state again from the verdicts alone.
"""

from __future__ import annotations

from itertools import combinations
from random import Random
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = ["Knockout", "Pair", "Ranking", "Tournament", "Verdict"]

# 1 if the first of a pair is better, -1 if the second is, 0 for a tie.
Verdict = int

# From this size on, some members of a part are also compared with each other: a middle one of them divides
# the next parts more evenly. Below, these comparisons would cost more than they save.
_SAMPLED_PART = 64
_SAMPLE = 5


class Pair(NamedTuple):
    """Two items to compare."""

    one: int
    other: int


class Tournament(Protocol):
    """Comparisons in rounds."""

    def pairs(self) -> list[Pair]:
        """Return the comparisons of the next round, once for each round; none if all is decided."""

    def settle(self, verdicts: Sequence[Verdict]) -> None:
        """Take the verdicts of a round, in the order of its pairs."""


class Knockout:
    """Finds the best candidate of each slot: n - 1 comparisons of n candidates, in log2(n) rounds.

    At a tie the candidate with more wins stands, else the earlier one.

    Args:
        slots: The candidates of each slot: ascending numbers, each in one slot.
    """

    def __init__(self, slots: Iterable[Sequence[int]]) -> None:
        self._alive = [list(slot) for slot in slots]
        self._wins: dict[int, int] = {}
        self._compared: dict[int, int] = {}
        self._pairs: list[Pair] = []

    def pairs(self) -> list[Pair]:
        """See Tournament."""
        self._pairs = [
            Pair(*sorted(alive[at : at + 2]))
            for alive in self._alive
            for at in range(0, len(alive) - 1, 2)
        ]
        return self._pairs

    def settle(self, verdicts: Sequence[Verdict]) -> None:
        """See Tournament."""
        stands = iter([self._standing(*one) for one in zip(self._pairs, verdicts, strict=True)])
        for slot, alive in enumerate(self._alive):
            # A candidate without an opponent meets one in the next round.
            rest = alive[-1:] if len(alive) % 2 else []
            self._alive[slot] = [*rest, *(next(stands) for _ in range(len(alive) // 2))]

    def _standing(self, pair: Pair, verdict: Verdict) -> int:
        for one in pair:
            self._compared[one] = self._compared.get(one, 0) + 1
        if verdict:
            winner = pair.one if verdict > 0 else pair.other
            self._wins[winner] = self._wins.get(winner, 0) + 1
            return winner
        return pair.other if self.wins(pair.other) > self.wins(pair.one) else pair.one

    def best(self) -> Iterator[int | None]:
        """Yield the best candidate of each slot so far; None for a slot without candidates."""
        for alive in self._alive:
            yield alive[0] if alive else None

    def wins(self, item: int) -> int:
        """Return how many comparisons a candidate has won."""
        return self._wins.get(item, 0)

    def comparisons(self, item: int) -> int:
        """Return how many comparisons a candidate was in."""
        return self._compared.get(item, 0)


class _Part(msgspec.Struct):
    """Items whose order among each other is unknown, or that are equal.

    Attributes:
        members: The items, ascending.
        is_decided: Whether they are equal.
        pivot: The item to compare the others with; None if none is better than another for that.
    """

    members: list[int]
    is_decided: bool = False
    pivot: int | None = None


class _Division(msgspec.Struct):
    """A part that a round divides, by comparisons with its pivot, and those among a sample of it."""

    members: list[int]
    pivot: int
    sample: list[int]

    def pairs(self) -> Iterator[Pair]:
        yield from (Pair(one, self.pivot) for one in self.members if one != self.pivot)
        yield from (Pair(*two) for two in combinations(self.sample, 2))

    def divided(self, verdicts: Iterator[Verdict]) -> Iterator[_Part]:
        better: list[int] = []
        equal: list[int] = []
        worse: list[int] = []
        for one in self.members:
            verdict = 0 if one == self.pivot else next(verdicts)
            (better if verdict > 0 else worse if verdict < 0 else equal).append(one)
        found = {frozenset(two): next(verdicts) for two in combinations(self.sample, 2)}
        if better:
            yield _Part(better, pivot=self._middle(better, found))
        yield _Part(equal, is_decided=True)
        if worse:
            yield _Part(worse, pivot=self._middle(worse, found))

    def _middle(self, side: list[int], found: Mapping[frozenset[int], Verdict]) -> int | None:
        """Return the middle one of the sampled items on one side."""
        some = sorted({*side} & {*self.sample})
        if not some:
            return None
        score = dict.fromkeys(some, 0)
        for one, other in combinations(some, 2):
            verdict = found[frozenset((one, other))]
            score[one] += verdict
            score[other] -= verdict
        return sorted(some, key=lambda one: (-score[one], one))[len(some) // 2]


class Ranking:
    """Orders the items of each group: a quicksort whose rounds divide all undecided parts at once.

    About 1.2 n log2(n) comparisons in about 2 log2(n) rounds. What ties with a pivot shares its rank.
    The order is consistent, also where the verdicts are not: each item is on one side of each pivot.
    With ``k``, parts that cannot reach the first k ranks are left as they are.

    Args:
        groups: The items of each group: ascending numbers, each in one group.
        seed: Decides which items are pivots.
        k: How many items of each group are to be ranked; None is all.
        copies: How many answers an item stands for, where these are several.
    """

    def __init__(
        self,
        groups: Iterable[Sequence[int]],
        *,
        seed: int = 0,
        k: int | None = None,
        copies: Mapping[int, int] | None = None,
    ) -> None:
        self._groups = [[_Part(list(items))] if items else [] for items in groups]
        self._random = Random(seed)  # noqa: S311 - which pivot is no secret
        self._k = k
        self._copies = copies or {}
        self._divisions: dict[int, dict[int, _Division]] = {}

    def pairs(self) -> list[Pair]:
        """See Tournament."""
        self._divisions = {}
        found: list[Pair] = []
        for number, parts in enumerate(self._groups):
            for at, (part, _) in enumerate(self._reached(parts)):
                if part.is_decided or len(part.members) == 1:
                    continue
                division = self._division(part)
                self._divisions.setdefault(number, {})[at] = division
                found += division.pairs()
        return found

    def settle(self, verdicts: Sequence[Verdict]) -> None:
        """See Tournament."""
        following = iter(verdicts)
        for number, divisions in self._divisions.items():
            parts: list[_Part] = []
            for at, part in enumerate(self._groups[number]):
                division = divisions.get(at)
                parts += [part] if division is None else division.divided(following)
            self._groups[number] = parts

    def ranked(self) -> Iterator[list[tuple[int, int]]]:
        """Yield for each group the rank, from 1, and the item of all that are decided, the best first."""
        for parts in self._groups:
            yield [(rank, one) for part, rank in self._reached(parts) for one in part.members]

    def _reached(self, parts: list[_Part]) -> Iterator[tuple[_Part, int]]:
        """Yield the parts that reach the first k, each with the rank of its first member."""
        before = 0
        for part in parts:
            if self._k is not None and before >= self._k:
                return
            yield part, before + 1
            before += sum(self._copies.get(one, 1) for one in part.members)

    def _division(self, part: _Part) -> _Division:
        members = part.members
        pivot = part.pivot if part.pivot is not None else members[self._below(len(members))]
        sample: set[int] = set()
        while len(members) >= _SAMPLED_PART and len(sample) < _SAMPLE:
            one = members[self._below(len(members))]
            if one != pivot:
                sample.add(one)
        return _Division(members, pivot, sorted(sample))

    def _below(self, count: int) -> int:
        # The same in all versions of Python, as other methods of Random need not be.
        return int(self._random.random() * count)
