"""Which answers are compared, and the order that verdicts of any judge give."""

from __future__ import annotations

from itertools import pairwise
from math import ceil, log2
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanout.policy.tournaments import Knockout, Pair, Ranking


def played(tournament, judge):
    """Return the number of rounds and of comparisons until all is decided."""
    rounds = comparisons = 0
    while pairs := tournament.pairs():
        rounds += 1
        comparisons += len(pairs)
        tournament.settle([judge(*pair) for pair in pairs])
    return rounds, comparisons


def by_value(values):
    def judge(one, other):
        return (values[one] > values[other]) - (values[one] < values[other])

    return judge


def always_first(_one, _other):
    """Return the verdict of two contradicting calls: a tie."""
    return 0


def cyclic(one, other):
    return 1 if (other - one) % 3 == 1 else -1 if (one - other) % 3 == 1 else 0


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.integers(0, 30), max_size=150),
    seed=st.integers(0, 2**32),
    k=st.none() | st.integers(1, 12),
)
def test_a_perfect_judge_gives_the_true_order_with_its_ties(values, seed, k):
    ranking = Ranking([range(len(values))], seed=seed, k=k)
    played(ranking, by_value(values))
    [ranked] = ranking.ranked()
    true = {value: 1 + sum(one > value for one in values) for value in values}
    expected = sorted((true[value], at) for at, value in enumerate(values))
    if k is not None:
        expected = [one for one in expected if one[0] <= k]
    assert ranked == expected


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 90), max_size=4),
    seed=st.integers(0, 2**32),
    verdicts=st.randoms(use_true_random=False),
)
def test_any_judge_gives_a_consistent_order(sizes, seed, verdicts):
    firsts = [sum(sizes[:at]) for at in range(len(sizes))]
    groups = [range(first, first + size) for first, size in zip(firsts, sizes, strict=True)]

    def judge(one, other):
        assert one != other
        return verdicts.choice((-1, 0, 1))

    ranking = Ranking(groups, seed=seed)
    played(ranking, judge)
    for group, ranked in zip(groups, ranking.ranked(), strict=True):
        assert sorted(one for _, one in ranked) == list(group), "each once, in its own group"
        for place, (rank, _) in enumerate(ranked, 1):
            assert rank == 1 + sum(other < rank for other, _ in ranked) <= place
        assert all(one <= other for (one, _), (other, _) in pairwise(ranked))


@pytest.mark.parametrize("judge", [always_first, cyclic], ids=["always the first", "cyclic"])
def test_a_judge_without_an_order_ends_too(judge):
    ranking = Ranking([range(60)], seed=4)
    rounds, comparisons = played(ranking, judge)
    assert rounds <= 60
    [ranked] = ranking.ranked()
    assert len(ranked) == 60
    if judge is always_first:
        assert (rounds, comparisons) == (1, 59)
        assert {rank for rank, _ in ranked} == {1}


@pytest.mark.parametrize("count", [10, 100, 1000])
def test_comparisons_and_rounds_of_a_ranking_are_bounded(count):
    found = []
    for seed in range(20):
        values = list(range(count))
        Random(seed).shuffle(values)
        found.append(played(Ranking([range(count)], seed=seed), by_value(values)))
    rounds, comparisons = (sorted(some) for some in zip(*found, strict=True))
    assert comparisons[10] <= 1.3 * count * log2(count)
    assert comparisons[-1] <= 2 * count * log2(count)
    assert rounds[10] <= 2 * log2(count)
    assert rounds[-1] <= 3 * log2(count)


def test_the_first_of_a_ranking_cost_few_comparisons():
    count, all_of_them, first = 1000, [], []
    for seed in range(10):
        values = list(range(count))
        Random(seed).shuffle(values)
        all_of_them.append(played(Ranking([range(count)], seed=seed), by_value(values))[1])
        first.append(played(Ranking([range(count)], seed=seed, k=10), by_value(values))[1])
    assert sum(first) / 10 < 4 * count
    assert sum(first) < sum(all_of_them) / 2


def test_copies_count_in_ranks_and_for_the_first():
    values = [5, 9, 7]
    ranking = Ranking([range(3)], copies={1: 3}, k=4)
    played(ranking, by_value(values))
    assert list(ranking.ranked()) == [[(1, 1), (4, 2)]]
    ranking = Ranking([range(3)], copies={1: 3}, k=3)
    played(ranking, by_value(values))
    assert list(ranking.ranked()) == [[(1, 1)]]


def test_the_same_verdicts_give_the_same_rounds():
    values = list(range(200))
    Random(1).shuffle(values)
    rounds = []
    for _ in range(2):
        ranking, seen = Ranking([range(200)], seed=7), []
        while pairs := ranking.pairs():
            seen.append(pairs)
            ranking.settle([by_value(values)(*pair) for pair in pairs])
        rounds.append(seen)
    assert rounds[0] == rounds[1]


@settings(max_examples=60, deadline=None)
@given(slots=st.lists(st.lists(st.integers(0, 9), max_size=9), max_size=5))
def test_a_knockout_finds_the_best_of_each_slot(slots):
    values = [value for slot in slots for value in slot]
    firsts = [sum(map(len, slots[:at])) for at in range(len(slots))]
    knockout = Knockout(
        range(first, first + len(slot)) for first, slot in zip(firsts, slots, strict=True)
    )
    rounds, comparisons = played(knockout, by_value(values))
    assert comparisons == sum(max(0, len(slot) - 1) for slot in slots)
    assert rounds == ceil(log2(max((len(slot) for slot in slots if slot), default=1)))
    for slot, best in zip(slots, knockout.best(), strict=True):
        assert (None if best is None else values[best]) == max(slot, default=None)


def test_at_a_tie_more_wins_stand_and_else_the_earlier_one():
    knockout = Knockout([range(4)])
    assert played(knockout, always_first) == (2, 3)
    assert list(knockout.best()) == [0]
    verdicts = {Pair(0, 1): 0, Pair(2, 3): -1, Pair(0, 3): 0}
    knockout = Knockout([range(4)])
    played(knockout, lambda *pair: verdicts[pair])
    assert list(knockout.best()) == [3]
    assert (knockout.wins(3), knockout.comparisons(3)) == (1, 2)


def test_no_candidate_is_without_an_opponent_twice():
    knockout = Knockout([range(5)])
    rounds = []
    while pairs := knockout.pairs():
        rounds.append(pairs)
        knockout.settle([1] * len(pairs))
    assert rounds == [[(0, 1), (2, 3)], [(0, 4)], [(0, 2)]]
