"""Sketches and postings in arrays are what lists of each would be."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from fanout.policy.postings import Postings, Sketches

TERMS = 8
SKETCHES = st.lists(
    st.dictionaries(st.integers(0, TERMS - 1), st.floats(0.1, 1), max_size=4), max_size=60
)


class Plain:
    """Postings with an object for each."""

    def __init__(self, *, most):
        self.most = most
        self.lists = defaultdict(list)

    def add(self, number, sketch):
        for term, weight in sketch.items():
            if len(self.lists[term]) < self.most:
                self.lists[term].append((number, weight))

    def products(self, sketch):
        found = defaultdict(float)
        for term, weight in sketch.items():
            for number, other in self.lists[term]:
                found[number] += weight * other
        return found


@given(SKETCHES)
def test_sketches_come_back_in_order(sketches):
    held = Sketches(sketches)
    assert len(held) == len(sketches)
    assert list(held) == sketches
    assert [list(one) for one in held] == [list(one) for one in sketches]


@settings(deadline=None)
@given(SKETCHES, st.sampled_from([1, 2, 3, 20, 255]))
def test_what_is_alike_is_what_plain_lists_say_to_the_last_bit_and_in_their_order(sketches, most):
    arrays, plain = Postings(terms=TERMS, most=most), Plain(most=most)
    for number, sketch in enumerate(sketches):
        assert list(arrays.products(sketch).items()) == list(plain.products(sketch).items())
        arrays.add(number, sketch)
        plain.add(number, sketch)


def test_a_block_that_is_left_is_used_again():
    postings = Postings(terms=100, most=100)
    for number in range(100):
        for term in range(100):
            postings.add(number, {term: 1.0})
    # Those in use, of 128 places each, and one half, quarter, ... of each size for all that moved at once.
    assert postings.places <= 2 * 100 * 128
    assert Postings(terms=100, most=100).places == 0
