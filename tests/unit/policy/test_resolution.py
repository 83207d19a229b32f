"""Which values are compared, and which groups the verdicts give."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanout.policy.resolution import candidates, closing_pairs, grouped, normal
from fanout.policy.tournaments import Pair


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("Acme, Inc.", "acme inc"),
        ("  ACME\n inc", "acme inc"),
        ("Müller", "muller"),
        ("ﬁne", "fine"),
        ("C++", "c"),
        ("+ +", "+ +"),
        ("日本", "日本"),
    ],
)
def test_what_makes_no_difference_is_left_out(text, key):
    assert normal(text) == key


def test_values_that_are_alike_are_candidates_the_most_alike_first():
    values = ["acme corporation", "bolt", "acme corp", "corp acme", "zebra"]
    found = candidates(values, most=10)
    assert found.pairs == [Pair(2, 3), Pair(0, 2), Pair(0, 3)]
    assert found.left_out == 0
    assert candidates(values, most=1) == ([Pair(2, 3)], 2)


def test_a_short_word_may_be_the_initials_of_several():
    assert candidates(["international business machines", "ibm", "bmi"], most=9).pairs == [
        Pair(0, 1)
    ]


def test_what_too_many_share_makes_no_candidates():
    many = [f"{number:04} limited" for number in range(500)]
    assert len(candidates(["limited a", "limited b", *many[:10]], most=9999).pairs) > 10
    # All have the same word; the numbers alone are not enough alike for each pair.
    found = candidates(many, most=10**6)
    assert len(found.pairs) + found.left_out < 500 * 499 / 2 / 4


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text("abc ", max_size=8), unique=True, max_size=30), st.integers(1, 40))
def test_pairs_are_of_two_values_and_each_is_there_once(values, most):
    found = candidates(values, most=most)
    assert len(found.pairs) <= most
    assert len({*found.pairs}) == len(found.pairs)
    assert all(0 <= one < other < len(values) for one, other in found.pairs)
    assert candidates(values, most=most) == found


def verdicts(**said):
    """The verdicts of pairs, such as ab=True."""
    return {Pair(*sorted(ord(one) - 97 for one in pair)): is_same for pair, is_same in said.items()}


@pytest.mark.parametrize(
    ("said", "members", "contradictions"),
    [
        ({}, ["a", "b", "c", "d"], 0),
        ({"ab": True, "bc": True}, ["abc", "d"], 0),
        ({"ab": True, "bc": True, "ac": False}, ["ab", "c", "d"], 1),
        ({"bc": True, "ab": True, "ac": False}, ["a", "bc", "d"], 1),
        ({"ab": True, "bc": None}, ["ab", "c", "d"], 0),
        ({"ab": True, "cd": True, "bc": True, "ad": False}, ["ab", "cd"], 1),
        ({"ab": False, "ac": True, "bc": True}, ["ac", "b", "d"], 1),
    ],
)
def test_no_group_has_two_values_that_differ(said, members, contradictions):
    found = grouped(4, verdicts(**said))
    names = ["".join(chr(97 + one) for one in some) for some in found.members]
    assert (names, found.contradictions) == (members, contradictions)


def test_what_holds_together_by_others_only_is_asked():
    said = verdicts(ab=True, bc=True, cd=True)
    groups = grouped(4, said)
    assert closing_pairs(groups, [1, 1, 1, 1], said, most=9) == [Pair(0, 2), Pair(0, 3)]
    assert closing_pairs(groups, [1, 5, 1, 1], said, most=9) == [Pair(1, 3)]
    assert closing_pairs(groups, [1, 1, 1, 1], said, most=1) == [Pair(0, 2)]
    assert closing_pairs(groups, [1, 1, 1, 1], said, most=0) == []


def test_long_values_that_are_alike_are_found_and_others_are_hardly_compared():
    words = [f"w{number * 7919 % 100_003:05}" for number in range(40_000)]
    texts = [" ".join(words[at * 100 : at * 100 + 100]) for at in range(300)]
    # Behind the beginning, a value makes no difference.
    changed = [texts[7].replace(texts[7][:6], "other", 1), texts[9] + " and more " * 1_000]
    found = candidates([*texts, *changed], most=9)
    assert {Pair(7, 300), Pair(9, 301)} <= {*found.pairs}


def test_the_search_stops_when_it_is_told_to():
    asked = []
    values = [f"value {number}" for number in range(2_000)]
    stopped = candidates(values, most=9, goes_on=lambda: asked.append(1) or len(asked) < 3)
    assert stopped is None
    assert len(asked) == 3
