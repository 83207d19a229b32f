"""Embeddings of answers: what a function returned as vectors, and which of them are alike.

Vectors are compared by the cosine of their angle, after the mean of the first answers is subtracted: those of
many models all point in nearly one direction, and only what is left tells answers apart.
"""

from __future__ import annotations

from array import array
from importlib import import_module
from importlib.util import find_spec
from itertools import chain, islice
from math import isfinite, sqrt
from operator import mul
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["LEAST_ALIKE_VECTORS", "VectorIndex", "directions", "vectors_from"]

# Of length 1, or empty if it says nothing.
Vector = array

# From this cosine on, vectors are alike: measured, see docs/folding.md.
LEAST_ALIKE_VECTORS = 0.25
# The first vectors, whose mean is subtracted from all.
_CENTRED = 500
# Prompts are shared by clusters that are at least so much alike.
_LEAST_NEAR = 0.1
_LARGEST = 65_536
# Text, or memory, that `array` would take as numbers.
_NO_ROWS = (str, bytes, bytearray, memoryview)


def vectors_from(returned: Any, count: int) -> list[Vector[float]]:
    """Return what a function returned for so many texts as vectors.

    Args:
        returned: Vectors, or the rows of an array, in the order of the texts.
        count: The number of texts.

    Raises:
        ValueError: It is something else; the message says what.
    """
    is_row = isinstance(returned, (*_NO_ROWS, dict))
    plain = returned.tolist() if hasattr(returned, "tolist") else returned
    if is_row or not hasattr(plain, "__iter__"):
        raise ValueError(f"returned {type(returned).__name__}, not a list of vectors")
    given = list(plain)
    wrong = next((one for one in given if isinstance(one, _NO_ROWS)), None)
    if wrong is not None:
        raise ValueError(f"returned vectors of type {type(wrong).__name__}, not lists of numbers")
    rows = [one.tolist() if hasattr(one, "tolist") else one for one in given]
    if len(rows) != count:
        raise ValueError(f"returned {len(rows):,} vectors for {count:,} texts")
    try:
        made = [array("f", row) for row in rows]
    except (TypeError, OverflowError):
        raise ValueError("returned vectors of something else than numbers") from None
    sizes = {len(one) for one in made}
    if len(sizes) > 1 or not 0 < min(sizes, default=1) <= _LARGEST:
        raise ValueError(
            f"returned vectors of {min(sizes):,} to {max(sizes):,} numbers; all must have as many, from 1 "
            f"to {_LARGEST:,}"
        )
    if not all(map(isfinite, chain.from_iterable(made))):
        raise ValueError("returned a vector with a number that is not finite")
    return made


def directions(vectors: Iterable[Vector[float]]) -> Iterator[Vector[float]]:
    """Yield the vectors without the mean of the first ones, with length 1; empty if nothing is left."""
    vectors = iter(vectors)
    first = list(islice(vectors, _CENTRED))
    if not first:
        return
    mean = [sum(some) / len(first) for some in zip(*first, strict=True)]
    for one in chain(first, vectors):
        moved = array("f", (number - middle for number, middle in zip(one, mean, strict=True)))
        length = sqrt(sum(map(mul, moved, moved)))
        # What is left of equal vectors is the error of the mean.
        scale = sqrt(sum(map(mul, one, one)))
        is_nothing = length <= scale * 1e-5
        yield array("f") if is_nothing else array("f", (number / length for number in moved))


class VectorIndex:
    """Finds the numbers of vectors that are like another one."""

    def __init__(self) -> None:
        self._numbers: list[int] = []
        self._rows: list[Vector[float]] = []
        # Some hundred times as fast as Python itself.
        self._numpy: Any = import_module("numpy") if find_spec("numpy") else None
        self._matrix: Any = None

    def add(self, number: int, vector: Vector[float]) -> None:
        """Add a vector."""
        if not vector:
            return
        if self._numpy is not None:
            self._add_row(vector)
        self._numbers.append(number)
        self._rows.append(vector)

    def _add_row(self, vector: Vector[float]) -> None:
        count = len(self._rows)
        if self._matrix is None or count == len(self._matrix):
            more = self._numpy.zeros((max(64, 2 * count), len(vector)), dtype="float32")
            if count:
                more[:count] = self._matrix
            self._matrix = more
        self._matrix[count] = vector

    def _cosines(self, vector: Vector[float]) -> list[float]:
        if self._numpy is None:
            return [sum(map(mul, row, vector)) for row in self._rows]
        own = self._numpy.frombuffer(vector, dtype="float32")
        cosines: list[float] = (self._matrix[: len(self._rows)] @ own).tolist()
        return cosines

    def alike(self, vector: Vector[float]) -> dict[int, float]:
        """Return how alike those are that are a little like a vector."""
        if not vector or not self._rows:
            return {}
        found = zip(self._numbers, self._cosines(vector), strict=True)
        return {number: cosine for number, cosine in found if cosine >= _LEAST_NEAR}

    def best(self, vector: Vector[float]) -> tuple[int | None, float]:
        """Return the most alike one, of equal ones the first, and how alike it is."""
        if not vector or not self._rows:
            return None, 0.0
        cosines = self._cosines(vector)
        cosine = max(cosines)
        return self._numbers[cosines.index(cosine)], cosine
