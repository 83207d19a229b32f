"""Which values name the same thing: candidate pairs by n-grams, and groups by what a model says of pairs.

All is a function of the values in the order of the input, and of the verdicts: a worker finds the same
pairs again, and so the state of a resolution from the verdicts alone.
"""

from __future__ import annotations

import heapq
import unicodedata
from collections import Counter, defaultdict
from heapq import nsmallest
from typing import TYPE_CHECKING, NamedTuple

from fanout.policy.tournaments import Pair

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence

__all__ = ["Candidates", "Groups", "candidates", "closing_pairs", "grouped", "normal"]

_GRAM = 3
# Values are candidates if they share so much of their n-grams.
_LEAST_ALIKE = 0.4
# The likeness of a short word with the initials of several words.
_ACRONYM_ALIKE = 0.5
_ACRONYM = range(2, 9)
# An n-gram, or initials, of more values than these says nothing; and it would take long to compare all.
_MOST_SHARED = 200
# What names something is short: of a longer value, the beginning is compared.
_MOST_CHARS = 200
# The rarest n-grams of a value lead to others. Long values share some by chance; those that are alike, more.
_RAREST = 24
_LEAST_SHARED = 2
# After so many values, it is asked whether to go on.
_LOOK_EVERY = 500


def normal(text: str) -> str:
    """Return a value without what makes no difference: case, accents, punctuation, and white space."""
    bare = (one for one in unicodedata.normalize("NFKD", text) if not unicodedata.combining(one))
    kept = "".join(one if one.isalnum() else " " for one in "".join(bare).casefold())
    # What has no letter or digit is compared as it is.
    return " ".join(kept.split()) or " ".join(text.split())


class Candidates(NamedTuple):
    """Pairs of values that may be the same.

    Attributes:
        pairs: The most alike first, by their numbers; the lower is first.
        left_out: How many more there are, which are less alike.
    """

    pairs: list[Pair]
    left_out: int


def candidates(
    values: Sequence[str],
    *,
    most: int,
    groups: Sequence[str] | None = None,
    goes_on: Callable[[], bool] | None = None,
) -> Candidates | None:
    """Return the pairs of values that are enough alike to ask a model about them.

    Args:
        values: Values, distinct within their group: see ``normal``.
        most: The most pairs.
        groups: The group of each value, as pairs are within one; None if there is a single one.
        goes_on: Asked now and then; where it is false, nothing is returned.
    """
    groups = [""] * len(values) if groups is None else groups
    # N-grams as numbers: texts of their own would take ten times as much memory.
    known: dict[tuple[str, str], int] = {}
    grams = [
        tuple({known.setdefault((group, gram), len(known)) for gram in _grams(value[:_MOST_CHARS])})
        for group, value in zip(groups, values, strict=True)
    ]
    shared = _postings(grams)
    initials = _postings(
        [
            tuple((group, one) for one in _initials(value))
            for group, value in zip(groups, values, strict=True)
        ]
    )
    kept: list[tuple[float, int, int]] = []
    count = 0
    for number, own in enumerate(grams):
        if goes_on is not None and number % _LOOK_EVERY == 0 and not goes_on():
            return None
        for other, alike in _alike(number, own, grams, shared[number], initials[number]).items():
            count += 1
            # A heap, whose first is the least alike: of equal ones, that of the last values.
            heapq.heappush(kept, (alike, -other, -number))
            if len(kept) > most:
                heapq.heappop(kept)
    kept.sort(reverse=True)
    return Candidates([Pair(-one, -other) for _, one, other in kept], count - len(kept))


def _grams(value: str) -> Iterator[str]:
    for word in value.split():
        padded = f" {word} "
        yield from (padded[at : at + _GRAM] for at in range(max(1, len(padded) - _GRAM + 1)))


def _initials(value: str) -> tuple[str, ...]:
    words = value.split()
    if len(words) > 1:
        return ("".join(word[0] for word in words),)
    return (value,) if len(value) in _ACRONYM else ()


def _postings(keys: Sequence[tuple[Hashable, ...]]) -> list[list[list[int]]]:
    """Return for each value the values with each of its keys, but for keys that too many have."""
    found: dict[Hashable, list[int]] = defaultdict(list)
    for number, some in enumerate(keys):
        for key in some:
            found[key].append(number)
    rare = {key: numbers for key, numbers in found.items() if 1 < len(numbers) <= _MOST_SHARED}
    return [[rare[key] for key in some if key in rare] for some in keys]


def _alike(
    number: int,
    own: tuple[int, ...],
    grams: Sequence[tuple[int, ...]],
    shared: Sequence[Sequence[int]],
    initials: Sequence[Sequence[int]],
) -> dict[int, float]:
    """Return the values before one that are enough like it, with how much."""
    others = _others(number, shared)
    all_own = set(own)
    found = {}
    for other in others:
        # Also those that too many have are shared.
        theirs = grams[other]
        alike = 2 * len(all_own.intersection(theirs)) / (len(own) + len(theirs))
        if alike >= _LEAST_ALIKE:
            found[other] = alike
    for some in initials:
        for other in some:
            if other < number:
                found.setdefault(other, _ACRONYM_ALIKE)
    return found


def _others(number: int, shared: Sequence[Sequence[int]]) -> Iterable[int]:
    """Return the values before one that share enough of its n-grams to be compared with it."""
    if len(shared) <= _RAREST:
        return {one for some in shared for one in some if one < number}
    counts = Counter(one for some in nsmallest(_RAREST, shared, key=len) for one in some)
    return [one for one, count in counts.items() if one < number and count >= _LEAST_SHARED]


class Groups(NamedTuple):
    """Values that are the same.

    Attributes:
        members: The values of each group, ascending; those of one value, too.
        contradictions: How many pairs were kept apart although a model says that they are the same, as it
            says of others of their groups that they are not.
    """

    members: list[list[int]]
    contradictions: int


def grouped(count: int, verdicts: Mapping[Pair, bool | None]) -> Groups:
    """Return the groups that verdicts give: no group has two values that are known to differ.

    Args:
        count: The number of values.
        verdicts: Whether a pair is the same, the most alike first; None is unknown.
    """
    group_of = list(range(count))
    members = {one: {one} for one in range(count)}
    differ: dict[int, set[int]] = defaultdict(set)
    for (one, other), is_same in verdicts.items():
        if is_same is False:
            differ[one].add(other)
            differ[other].add(one)
    contradictions = 0
    for (one, other), is_same in verdicts.items():
        small, large = sorted((group_of[one], group_of[other]), key=lambda at: len(members[at]))
        if not is_same or small == large:
            continue
        if any(differ[at] & members[large] for at in members[small] if at in differ):
            contradictions += 1
            continue
        for at in members.pop(small):
            group_of[at] = large
            members[large].add(at)
    found = sorted((sorted(some) for some in members.values()), key=lambda some: some[0])
    return Groups(found, contradictions)


def closing_pairs(
    groups: Groups, weights: Sequence[int], verdicts: Mapping[Pair, bool | None], *, most: int
) -> list[Pair]:
    """Return the pairs that check groups which hold together by others only: A = B and B = C.

    Each value of a group is compared with the most frequent one of it.

    Args:
        groups: The groups.
        weights: How often each value is there.
        verdicts: The pairs that were asked.
        most: The most pairs.
    """
    found = []
    for some in groups.members:
        first = max(some, key=lambda at: (weights[at], -at))
        pairs = (Pair(*sorted((first, one))) for one in some if one != first)
        found += [pair for pair in pairs if pair not in verdicts]
    return found[:most]
