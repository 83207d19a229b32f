"""Vectors of answers: what functions return as such, and which are alike."""

from __future__ import annotations

from array import array
from math import nan

import pytest

from fanout.policy import vectors
from fanout.policy.clusters import Clusters
from fanout.policy.vectors import VectorIndex, directions, vectors_from


class Rows:
    """As an array of numpy."""

    def __init__(self, rows):
        self._rows = rows

    def tolist(self):
        return self._rows


@pytest.mark.parametrize(
    "returned", [[[1, 2.0], (3, 4)], Rows([[1, 2], [3, 4]]), [Rows([1, 2]), array("d", [3, 4])]]
)
def test_vectors_are_lists_or_rows_of_arrays(returned):
    assert [list(one) for one in vectors_from(returned, 2)] == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (None, "returned NoneType, not a list of vectors"),
        ("ab", "returned str, not a list"),
        ([[1.0]], "returned 1 vectors for 2 texts"),
        ([1.0, 2.0], "vectors of something else than numbers"),
        ([["a"], ["b"]], "vectors of something else than numbers"),
        (["ab", "cd"], "vectors of type str, not lists of numbers"),
        ([b"abcdefgh", b"ijklmnop"], "vectors of type bytes"),
        ([[1.0], bytearray(4)], "vectors of type bytearray"),
        ([memoryview(b"abcd"), memoryview(b"efgh")], "vectors of type memoryview"),
        (b"ab", "returned bytes, not a list"),
        (bytearray(2), "returned bytearray, not a list"),
        (memoryview(b"ab"), "returned memoryview, not a list"),
        ([[1.0], [1.0, 2.0]], "vectors of 1 to 2 numbers"),
        ([[], []], "vectors of 0 to 0 numbers"),
        ([[1.0], [nan]], "a number that is not finite"),
    ],
)
def test_what_is_no_vector_is_refused(returned, words):
    with pytest.raises(ValueError, match=words):
        vectors_from(returned, 2)


def test_what_all_vectors_have_in_common_does_not_count():
    shared = [100.0, 0.0, 0.0]
    made = [array("f", [shared[0], 1.0, 0.0]), array("f", [shared[0], 0.0, 1.0])] * 3
    found = list(directions(made))
    assert all(one[0] == pytest.approx(0, abs=1e-3) for one in found)
    assert sum(map(float.__mul__, map(float, found[0]), map(float, found[1]))) < 0
    assert [len(one) for one in directions([array("f", [1.0, 2.0])] * 3)] == [0, 0, 0]


@pytest.mark.parametrize("has_numpy", [True, False])
def test_vectors_that_point_the_same_way_are_a_cluster(has_numpy, monkeypatch):
    if not has_numpy:
        monkeypatch.setattr(vectors, "find_spec", lambda _name: None)
    clusters = Clusters(VectorIndex(), [array("f")], least_alike=0.5)
    ways = [[1.0, 0.0], [0.0, 1.0], [0.8, 0.6], [-1.0, 0.0], [0.0, 1.0]]
    numbers = [clusters.add(array("f", way)) for way in [*ways, []]]
    assert numbers == [1, 2, 1, 3, 2, 0]
    index = VectorIndex()
    for number in range(200):
        index.add(number, array("f", [1.0, 0.0] if number % 2 else [0.0, 1.0]))
    assert index.best(array("f", [1.0, 0.0]))[0] == 1
    assert {*index.alike(array("f", [0.0, 1.0]))} == {*range(0, 200, 2)}
