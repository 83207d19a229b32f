"""Costs and times as ranges, and what a sample says of the rest."""

from __future__ import annotations

import random

import pytest

from fanout.core.rate_limits import Rates
from fanout.policy.estimates import (
    Calls,
    Projection,
    answer_range,
    cost_range,
    likely_answer,
    likely_cost,
    project,
    time_range,
)
from fanout.policy.pricing import FREE, Price
from fanout.policy.reduce_ranges import (
    cluster_range,
    least_refine_range,
    least_tree_range,
    refine_range,
    tree_calls,
    tree_range,
)
from fanout.policy.token_ratio import TokenSums

PRICE = Price(
    input_mtok=1.0, output_mtok=10.0, batch=Price(input_mtok=0.5, output_mtok=5.0),
    longer=((1_000, Price(input_mtok=2.0, output_mtok=20.0)),),
)  # fmt: skip
CALLS = Calls(
    calls_low=1_000, calls_high=1_000, input_low=500_000, input_high=500_000,
    output_low=1_000, output_high=100_000,
)  # fmt: skip
SEEN = TokenSums(calls=50, answers=50, output_tokens=5_000, elapsed_s=100)


@pytest.mark.parametrize(
    ("price", "calls", "lane", "expected"),
    [
        (PRICE, CALLS, "realtime", (0.51, 1.5)),
        (PRICE, CALLS, "batch", (0.255, 0.75)),
        (FREE, CALLS, "realtime", (0.0, 0.0)),
        (None, CALLS, "realtime", (None, None)),
        (PRICE, Calls(), "realtime", (0.0, 0.0)),
    ],
)  # fmt: skip
def test_a_cost_is_a_range(price, calls, lane, expected):
    found = cost_range(price, calls, lane)
    if expected[0] is None:
        assert found == expected
    else:
        assert list(found) == pytest.approx(list(expected))


def test_long_prompts_have_their_own_price():
    long = Calls(calls_low=1, calls_high=1, input_low=2_000, input_high=2_000, output_high=0)
    assert list(cost_range(PRICE, long, "realtime")) == pytest.approx([0.004, 0.004])


def test_without_a_limit_of_answers_there_is_no_most():
    assert cost_range(PRICE, Calls(calls_low=1, calls_high=1, output_high=None), "batch")[1] is None
    both = CALLS.plus(Calls(calls_low=1, calls_high=2, output_high=None))
    assert (both.calls_low, both.calls_high, both.output_high) == (1_001, 1_002, None)


@pytest.mark.parametrize(
    ("least", "most", "seen", "expected"),
    [
        (1, 500, TokenSums(), (1, 500)),
        (1, None, TokenSums(), (1, None)),
        (1, 500, SEEN, (50, 200)),
        (1, None, SEEN, (50, 200)),
        (1, 80, SEEN, (50, 80)),
        (1, 20, SEEN, (20, 20)),
        (1, 500, TokenSums(calls=9, answers=9, output_tokens=90), (1, 500)),
    ],
)
def test_answers_are_as_long_as_they_were(least, most, seen, expected):
    assert answer_range(least=least, most=most, seen=seen) == expected


@pytest.mark.parametrize(
    ("least", "most", "seen", "expected"),
    [
        (1, 128_000, TokenSums(), 500),
        (1, None, TokenSums(), 500),
        (1, 40, TokenSums(), 40),
        (900, None, TokenSums(), 900),
        (1, 128_000, SEEN, 100),
        (1, 128_000, TokenSums(calls=1, answers=1, output_tokens=7), 7),
    ],
)
def test_an_answer_is_likely_as_long_as_others_were(least, most, seen, expected):
    assert likely_answer(least=least, most=most, seen=seen) == expected


def test_what_calls_likely_cost():
    likely = Calls(calls_likely=10, input_likely=1_000, output_likely=100)
    assert likely_cost(PRICE, likely, "realtime") == pytest.approx(0.002)
    assert likely_cost(PRICE, likely.plus(likely), "batch") == pytest.approx(0.002)
    assert likely_cost(None, likely, "realtime") is None
    assert likely_cost(PRICE, Calls(), "realtime") == 0


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, (None, None)),
        ({"requests_per_minute": 100}, (600, 600)),
        ({"tokens_per_minute": 100_000}, (300.6, 360)),
        ({"input_tokens_per_minute": 50_000, "requests_per_minute": 1e9}, (600, 600)),
        ({"places": 10, "call_s": 2.0}, (200, 200)),
        ({"places": 10}, (None, None)),
        ({"call_s": 2.0}, (None, None)),
        ({"places": 4_000, "call_s": 2.0}, (2.0, 2.0)),
        ({"places": 999, "call_s": 2.0}, (4.0, 4.0)),
        ({"requests_per_minute": 1e9, "call_s": 2.0}, (2.0, 2.0)),
        ({"requests_per_minute": 100, "places": 1, "call_s": 2.0}, (2_000, 2_000)),
    ],
)
def test_the_tightest_limit_says_how_long_it_takes(limits, expected):
    rates = Rates(**{name: rate for name, rate in limits.items() if name.endswith("_minute")})
    found = time_range(CALLS, rates=rates, places=limits.get("places"), call_s=limits.get("call_s"))
    if expected[0] is None:
        assert found == expected
    else:
        assert list(found) == pytest.approx(list(expected))


def test_a_reduce_is_a_tree():
    assert tree_calls(0, room=100, answer=10, partial=10) == (0, 0)
    assert tree_calls(10, room=100, answer=10, partial=10) == (1, 100)
    assert tree_calls(100, room=100, answer=10, partial=10) == (16, 1_150)
    assert tree_calls(3, room=100, answer=500, partial=500)[0] == 6, "each level halves at least"


@pytest.mark.parametrize(
    ("answers", "calls", "tokens"),
    [(0, 0, 0), (5, 1, 150), (6, 2, 6 * 30 + 40), (45, 11, 45 * 30 + 10 * 40)],
)
def test_a_chain_of_calls_sees_each_answer_once_and_the_answer_so_far_each_time(
    answers, calls, tokens
):
    found = refine_range(answers, 150, 10, 20, 0)
    assert (found.calls_low, found.input_low) == (calls, tokens)
    framed = refine_range(answers, 150, 10, 20, 7)
    assert framed.input_high == tokens + 7 * calls


@pytest.mark.parametrize(("answers", "calls"), [(0, 0), (5, 1), (50, 25 + 5 + 1)])
def test_clusters_fill_half_of_a_prompt_at_least(answers, calls):
    found = cluster_range(answers, 150, 10, 0, 0)
    assert found.calls_high == calls
    assert found.calls_high >= tree_range(answers, 150, 10, 0, 0).calls_high


@pytest.mark.parametrize(("answers", "calls"), [(0, 0), (10, 1), (11, 3), (100, 10 + 1)])
def test_a_tree_has_no_fewer_calls_than_those_of_full_prompts(answers, calls):
    found = least_tree_range(answers, 150, 11, 1, 0)
    assert found.calls_low == calls
    tree = tree_range(answers, 150, 11, 1, 0)
    assert (found.calls_low, found.input_low) <= (tree.calls_low, tree.input_low)


@pytest.mark.parametrize("answers", [0, 1, 5, 6, 45, 1_000])
def test_a_chain_of_short_names_has_no_more_calls_and_tokens(answers):
    found, chain = (one(answers, 150, 10, 20, 7) for one in (least_refine_range, refine_range))
    assert found.calls_low <= chain.calls_low
    assert found.input_low <= chain.input_low


def test_calls_that_follow_each_other_take_their_time_on_any_number_of_places():
    found = time_range(CALLS, rates=Rates(), places=9_999, call_s=2.0, in_turn=(3, 5))
    assert found == (6.0, 10.0)


def test_a_sample_of_all_has_no_error():
    assert project([1.0, 2.0], 2) == Projection(value=3.0, low=3.0, high=3.0)
    assert project([], 5) is None
    assert project([2.0], 5) == Projection(value=10.0, low=None, high=None), "a mean, no interval"
    assert project([4.0], 1) == Projection(value=4.0, low=4.0, high=4.0)


def test_the_interval_holds_the_truth_in_95_of_100_samples():
    chance = random.Random(4)
    everything = [chance.gauss(100, 20) for _ in range(500)]
    truth, held = sum(everything), 0
    for _ in range(400):
        found = project(chance.sample(everything, 20), len(everything))
        held += found.low <= truth <= found.high
    assert 0.92 <= held / 400 <= 0.98
