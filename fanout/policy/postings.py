"""Terms with weights in few large arrays: an object for each of them would take several times the memory."""

from __future__ import annotations

from array import array
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["Postings", "Sketches"]

# Numbers of terms and sketches, and places in arrays: 4 bytes each.
_NUMBERS = "I"
# How many a term has, of at most 255.
_COUNTS = "B"


class Sketches:
    """Takes sketches, which are terms with weights, and gives them back in order.

    Args:
        sketches: The first ones.
    """

    def __init__(self, sketches: Iterable[Mapping[int, float]] = ()) -> None:
        self._terms = array(_NUMBERS)
        self._weights = array("d")
        self._ends = array(_NUMBERS, [0])
        for sketch in sketches:
            self.append(sketch)

    def append(self, sketch: Mapping[int, float], /) -> None:
        """Take a sketch."""
        self._terms.extend(sketch.keys())
        self._weights.extend(sketch.values())
        self._ends.append(len(self._terms))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[dict[int, float]]:
        for at in range(len(self)):
            start, end = self._ends[at : at + 2]
            yield dict(zip(self._terms[start:end], self._weights[start:end], strict=True))


class Postings:
    """The sketches that have a term, with its weight in each, in the order in which they came.

    Those of a term stand next to each other, in a block of 1, 2, 4 or more places. Once it is full, they move
    to a block of twice as many, and the old one is used again.

    Args:
        terms: The number of terms; each is known by a number below that.
        most: The most sketches that a term is noted for; at most 255.
    """

    def __init__(self, *, terms: int, most: int) -> None:
        self._terms = terms
        self._most = most
        # A group may have few answers, and none that are compared.
        self._starts = array(_NUMBERS)
        self._counts = array(_COUNTS)
        self._numbers = array(_NUMBERS)
        self._weights = array("d")
        # The starts of blocks that are not in use, by their places.
        self._unused: defaultdict[int, list[int]] = defaultdict(list)

    def add(self, number: int, sketch: Mapping[int, float]) -> None:
        """Note the terms of a sketch."""
        if not self._starts:
            self._starts = array(_NUMBERS, bytes(array(_NUMBERS).itemsize * self._terms))
            self._counts = array(_COUNTS, bytes(self._terms))
        for term, weight in sketch.items():
            count = self._counts[term]
            if count == self._most:
                continue
            if count & (count - 1) == 0:
                # None, or a power of two: all blocks that it has had are full.
                self._move(term, count)
            place = self._starts[term] + count
            self._numbers[place], self._weights[place] = number, weight
            self._counts[term] = count + 1

    def _move(self, term: int, count: int) -> None:
        """Give a term a block of twice as many places as it has."""
        old, places = self._starts[term], max(1, 2 * count)
        unused = self._unused[places]
        if unused:
            new = unused.pop()
        else:
            new = len(self._numbers)
            self._numbers.extend([0] * places)
            self._weights.extend([0.0] * places)
        if count:
            self._numbers[new : new + count] = self._numbers[old : old + count]
            self._weights[new : new + count] = self._weights[old : old + count]
            self._unused[count].append(old)
        self._starts[term] = new

    @property
    def places(self) -> int:
        """The places of all blocks, each of which takes 12 bytes."""
        return len(self._numbers)

    def products(self, sketch: Mapping[int, float]) -> dict[int, float]:
        """Return the sums of the products of the weights that sketches share with another one."""
        found: defaultdict[int, float] = defaultdict(float)
        if not self._starts:
            return found
        numbers, weights = self._numbers, self._weights
        for term, weight in sketch.items():
            count = self._counts[term]
            if count:
                start = self._starts[term]
                end = start + count
                for number, other in zip(numbers[start:end], weights[start:end], strict=True):
                    found[number] += weight * other
        return found
