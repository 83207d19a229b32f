"""Which answers are alike: clusters of them, found in one pass, and the clusters that share a prompt.

An answer is compared by a sketch: its most telling terms, with the weights of BM25, or a vector that a
function has made of it (fanout.policy.vectors). It joins the cluster
whose first answer, the leader, is most alike, or leads a new one. All is a function of the answers in the
order of the input. What is in memory does not grow with the answers: a count for each of about a million
terms, and the sketches of so many leaders.
"""

from __future__ import annotations

import heapq
from array import array
from collections import Counter, defaultdict
from math import log, sqrt
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar
from zlib import crc32

from fanout.policy.postings import Postings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = [
    "LEAST_ALIKE",
    "LEAST_FULL",
    "MOST_LEADERS",
    "Clusters",
    "Index",
    "Leaders",
    "Sketch",
    "Vocabulary",
    "WordIndex",
    "shared_prompts",
]

_Sketch = TypeVar("_Sketch")
_Compared_contra = TypeVar("_Compared_contra", contravariant=True)
_Held = TypeVar("_Held")

# Terms by their numbers, with weights: the sum of the products of two sketches is how alike they are, 0 to 1.
Sketch = dict[int, float]

# Terms are told apart by so many hashes.
_TERMS = 1 << 20
_MOST_TERMS = 24
# How soon more of the same word say no more: the parameter k1 of BM25.
_SATURATION = 1.2
# An answer is alike from here on: a quarter of what two equal ones would have.
LEAST_ALIKE = 0.25
MOST_LEADERS = 10_000
# A term of more leaders than these tells little, and it would take long to compare all.
_MOST_SHARED = 100
# A cluster that fills more of a prompt has it for itself.
LEAST_FULL = 0.5


class Vocabulary:
    """Counts in how many answers terms are, and weighs the terms of an answer by that."""

    def __init__(self) -> None:
        self._answers = 0
        # By the number of answers that have a term.
        self._rarities: dict[int, float] = {}
        self._counts = array("I")

    def add(self, words: Iterable[str]) -> None:
        """Count the words of an answer."""
        if not self._answers:
            self._counts = array("I", bytes(array("I").itemsize * _TERMS))
        self._answers += 1
        self._rarities.clear()
        for term in {*map(_term, {*words})}:
            self._counts[term] += 1

    def sketch(self, words: Iterable[str]) -> Sketch:
        """Return the sketch of an answer that has been counted.

        A word that no other answer has tells nothing that others could share.
        """
        counts = self._counts
        shared = (
            (self._rarity(counts[term]) * many / (many + _SATURATION), term)
            for word, many in Counter(words).items()
            if counts[term := _term(word)] > 1
        )
        kept = heapq.nlargest(_MOST_TERMS, shared)
        length = sqrt(sum(weight * weight for weight, _ in kept))
        return {term: weight / length for weight, term in kept}

    def _rarity(self, count: int) -> float:
        rarity = self._rarities.get(count)
        if rarity is None:
            rarity = log(1 + (self._answers - count + 0.5) / (count + 0.5))
            self._rarities[count] = rarity
        return rarity


def _term(word: str) -> int:
    return crc32(word.encode(errors="surrogatepass")) % _TERMS


class Index(Protocol[_Compared_contra]):
    """Finds the numbers of sketches that are like another one."""

    def add(self, number: int, sketch: _Compared_contra, /) -> None:
        """Add a sketch; one that says nothing is never found."""

    def alike(self, sketch: _Compared_contra, /) -> dict[int, float]:
        """Return how alike those are that are like a sketch at all."""

    def best(self, sketch: _Compared_contra, /) -> tuple[int | None, float]:
        """Return the most alike one, of equal ones the first, and how alike it is."""


class Leaders(Protocol[_Held]):
    """Holds the sketches of leaders, in order."""

    def append(self, sketch: _Held, /) -> None:
        """Take a sketch."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[_Held]: ...


class Clusters(Generic[_Sketch]):
    """Gives answers the numbers of clusters. That of number 0 is of answers that are like no other.

    Args:
        index: Finds leaders; an empty one.
        leaders: Takes the sketches of the leaders, by the numbers of their clusters. It has one, of number 0,
            which says nothing.
        least_alike: How alike an answer is to the leader of its cluster, 0 to 1.
        most_leaders: The most leaders. Once there are so many, an answer joins the one that is most alike,
            however little.
    """

    def __init__(
        self,
        index: Index[_Sketch],
        leaders: Leaders[_Sketch],
        *,
        least_alike: float = LEAST_ALIKE,
        most_leaders: int = MOST_LEADERS,
    ) -> None:
        self._least_alike = least_alike
        self._most = most_leaders
        self._index = index
        self._leaders = leaders

    def add(self, sketch: _Sketch) -> int:
        """Return the cluster of an answer."""
        best, alike = self._index.best(sketch)
        is_full = len(self._leaders) > self._most
        if best is not None and (alike >= self._least_alike or is_full):
            return best
        if is_full or not sketch:
            return 0
        number = len(self._leaders)
        self._leaders.append(sketch)
        self._index.add(number, sketch)
        return number

    def finish(self) -> Leaders[_Sketch]:
        """Return the leaders; no answer can be added from here on, and the index takes no memory."""
        del self._index
        return self._leaders


class WordIndex:
    """Finds the numbers of sketches that are like another one."""

    def __init__(self) -> None:
        self._postings = Postings(terms=_TERMS, most=_MOST_SHARED)

    def add(self, number: int, sketch: Sketch) -> None:
        """Add a sketch."""
        self._postings.add(number, sketch)

    def alike(self, sketch: Sketch) -> dict[int, float]:
        """Return how alike those are that share a term with a sketch."""
        return self._postings.products(sketch)

    def best(self, sketch: Sketch) -> tuple[int | None, float]:
        """Return the most alike one, of equal ones the first, and how alike it is."""
        found = self.alike(sketch)
        if not found:
            return None, 0.0
        number = min(found, key=lambda one: (-found[one], one))
        return number, found[number]


def shared_prompts(
    sizes: Sequence[int], leaders: Iterable[_Sketch], index: Index[_Sketch], *, room: int
) -> list[int]:
    """Return the numbers of the prompts of clusters, by these; the lower number is of the earlier cluster.

    A cluster that takes more than half a prompt has one for itself, or several if it does not fit one.
    Smaller ones share prompts, with those first that are most alike. So all prompts but one are half full,
    save the last one of a cluster that has several.

    Args:
        sizes: The tokens of each cluster.
        leaders: Their leaders.
        index: Finds leaders; an empty one.
        room: The tokens that fit a prompt.
    """
    prompts = [0] * len(sizes)
    used: list[int] = []
    open_prompts: dict[int, int] = {}
    for number, (size, leader) in enumerate(zip(sizes, leaders, strict=True)):
        if size > LEAST_FULL * room:
            prompts[number] = len(used)
            used.append(size)
            continue
        alike: defaultdict[int, float] = defaultdict(float)
        for other, weight in index.alike(leader).items():
            prompt = open_prompts[other]
            if used[prompt] + size <= room:
                alike[prompt] += weight
        prompt = min(alike, key=lambda one: (-alike[one], one), default=len(used))
        if prompt == len(used):
            used.append(0)
        used[prompt] += size
        prompts[number] = open_prompts[number] = prompt
        index.add(number, leader)
    merged = _merged(used, room)
    return [merged[prompt] for prompt in prompts]


def _merged(used: Sequence[int], room: int) -> list[int]:
    """Return new numbers of prompts, of which those that are not half full are put together in order."""
    numbers: list[int] = []
    made = 0
    filling: tuple[int, int] | None = None
    for size in used:
        if size > LEAST_FULL * room:
            numbers.append(made)
            made += 1
        elif filling is None:
            numbers.append(made)
            filling = made, size
            made += 1
        else:
            prompt, before = filling
            numbers.append(prompt)
            filling = (prompt, before + size) if before + size <= LEAST_FULL * room else None
    return numbers
