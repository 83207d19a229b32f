"""What a call can use at most, whether it fits, and what is kept for the reduce."""

from __future__ import annotations

import pytest

from fanout.core.budgets import NO_AMOUNTS, Amounts, BudgetLimits, BudgetState, nano_usd_of
from fanout.core.records import Usage
from fanout.policy.budgets import (
    REDUCE_SHARE,
    Fit,
    fit,
    has_spare,
    map_limits,
    most_of_call,
    needed_for_spare,
    over_budget,
    pace,
    reduce_share,
    spare_room,
    used_by_call,
)
from fanout.policy.pricing import Price

PRICE = Price(input_mtok=1.0, output_mtok=10.0, cache_write_mtok=1.25)


def calls(number):
    return Amounts(calls=number)


@pytest.mark.parametrize(
    ("spent", "unsure", "held", "most", "expected"),
    [
        (0, 0, 0, 10, Fit.FITS),
        (9, 0, 0, 1, Fit.FITS),
        (9, 0, 0, 2, Fit.NEVER),
        (5, 4, 0, 2, Fit.NEVER),
        (5, 0, 4, 1, Fit.FITS),
        (5, 0, 4, 2, Fit.LATER),
        (0, 0, 10, 10, Fit.LATER),
        (0, 0, 0, 11, Fit.NEVER),
    ],
)
def test_a_call_fits_waits_for_others_or_never_fits(spent, unsure, held, most, expected):
    limits = BudgetLimits(calls=10)
    state = BudgetState(
        limits=limits,
        map_limits=limits,
        spent=calls(spent),
        unsure=calls(unsure),
        held=calls(held),
    )
    assert fit(calls(most), state, is_reduce=False) is expected


def test_each_limit_counts_and_a_missing_one_does_not():
    limits = BudgetLimits(nano_usd=5, tokens=7)
    state = BudgetState(limits=limits, map_limits=limits)
    assert fit(Amounts(nano_usd=5, calls=999, tokens=7), state, is_reduce=False) is Fit.FITS
    assert fit(Amounts(nano_usd=6), state, is_reduce=False) is Fit.NEVER
    assert fit(Amounts(tokens=8), state, is_reduce=False) is Fit.NEVER


def test_more_is_kept_where_answers_are_compared():
    kept = {name: reduce_share([name]) for name in ("none", "rank", "llm", "best", "pairwise")}
    assert kept == {"none": 0, "rank": 0, "llm": REDUCE_SHARE, "best": 0.5, "pairwise": 0.5}
    limits = map_limits(BudgetLimits(calls=100), reduce_share=kept["best"])
    assert limits == BudgetLimits(calls=50)


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        (BudgetLimits(calls=100), BudgetLimits(calls=90)),
        (BudgetLimits(calls=5), BudgetLimits(calls=4)),
        (BudgetLimits(calls=1), BudgetLimits(calls=1)),
        (BudgetLimits(nano_usd=1_000, tokens=15), BudgetLimits(nano_usd=900, tokens=13)),
    ],
)
def test_a_tenth_is_kept_for_a_reduce_that_makes_calls(limits, kept):
    assert map_limits(limits, reduce_share=REDUCE_SHARE) == kept
    assert map_limits(limits, reduce_share=0) == limits
    state = BudgetState(limits=limits, map_limits=kept, spent=Amounts(nano_usd=950))
    if limits.nano_usd:
        assert fit(Amounts(nano_usd=50), state, is_reduce=False) is Fit.NEVER
        assert fit(Amounts(nano_usd=50), state, is_reduce=True) is Fit.FITS


def test_the_most_of_a_call_is_a_written_prompt_and_the_longest_answer():
    most = most_of_call(1_000, 100, price=PRICE)
    assert most == Amounts(nano_usd=nano_usd_of(0.00125 + 0.001), calls=1, tokens=1_100)
    assert most_of_call(1_000, 100, price=None) == Amounts(calls=1, tokens=1_100)
    assert most_of_call(1_000, None, price=PRICE) == Amounts(calls=1)


def test_a_call_in_a_cheaper_lane_counts_as_the_dearer_one_in_which_it_may_end():
    price = Price(
        input_mtok=2.0,
        output_mtok=2.0,
        flex=Price(input_mtok=1.0, output_mtok=1.0),
        batch=Price(input_mtok=1.0, output_mtok=1.0),
    )
    assert most_of_call(500_000, 0, price=price, lane="flex").usd == 1.0
    assert most_of_call(500_000, 0, price=price, lane="batch").usd == 0.5


def test_what_is_unknown_of_a_call_counts_with_the_most_that_it_can_be():
    most = Amounts(nano_usd=900, calls=1, tokens=90)
    assert used_by_call(Usage(calls=1), most) == most
    part = Usage(calls=1, input_tokens=9, cost_usd=1e-9)
    assert used_by_call(part, most) == Amounts(nano_usd=1, calls=1, tokens=90)
    whole = Usage(calls=1, input_tokens=9, output_tokens=2, cost_usd=0.0)
    assert used_by_call(whole, most) == Amounts(nano_usd=0, calls=1, tokens=11)


@pytest.mark.parametrize("usd", [0.1, 0.29, 1 / 3, 4.35, 1e-9, 123_456.789])
def test_sums_of_rounded_costs_never_pass_the_limit_that_floats_would_keep(usd):
    limit = BudgetLimits.of(usd=usd).nano_usd
    assert limit is not None
    assert nano_usd_of(usd) - limit in {0, 1}
    assert 0 <= nano_usd_of(usd) / 1e9 - usd < 1.1e-9


def test_the_error_says_what_is_spent_of_what():
    limits = BudgetLimits.of(usd=5.0, calls=100)
    state = BudgetState(
        limits=limits,
        map_limits=map_limits(limits, reduce_share=REDUCE_SHARE),
        spent=Amounts(nano_usd=nano_usd_of(4.49), calls=7),
    )
    text = over_budget(Amounts(nano_usd=nano_usd_of(0.02), calls=1), state, is_reduce=False)
    assert text == (
        "the run's budget of $5.00 has no room for this call: $4.49 spent, and it may use $0.02 "
        "($0.50 kept for the reduce)"
    )
    state = BudgetState(limits=BudgetLimits(calls=1), map_limits=BudgetLimits(calls=1),
                        spent=calls(1))  # fmt: skip
    assert "budget of 1 call has no room" in over_budget(calls(1), state, is_reduce=False)
    # One that is too large by itself.
    text = over_budget(calls(2), state, is_reduce=False, budget="the budget")
    assert text == "the budget of 1 call has no room for this call: it may use 2 calls"
    limits = BudgetLimits.of(usd=1e-5)
    state = BudgetState(limits=limits, map_limits=limits, spent=NO_AMOUNTS)
    text = over_budget(Amounts(nano_usd=nano_usd_of(2.5e-5)), state, is_reduce=False)
    assert text.startswith("the run's budget of $0.00001 has no room")
    assert text.endswith("it may use $0.000025")
    assert calls(0) == NO_AMOUNTS


@pytest.mark.parametrize(
    ("limit", "spent", "needed", "shown"),
    [
        # As it was given, also where it is nearly a dollar.
        (0.9996, 0.9, 0.1, ("$0.9996", "$0.90", "$0.10")),
        (1.2345, 1.2, 0.04, ("$1.2345", "$1.20", "$0.04")),
        # With fewer decimals, there would seem to be room.
        (0.00125, 0.001_23, 0.000_04, ("$0.00125", "$0.00123", "$0.00004")),
        (5.0, 4.9949, 0.0052, ("$5.00", "$4.9949", "$0.0052")),
        (5.0, 4.996, 0.004_96, ("$5.00", "$4.996", "$0.005")),
        (1_000.0, 999.999_999_999, 2e-9, ("$1,000.00", "$999.999999999", "$0.000000002")),
    ],
)
def test_the_error_shows_dollars_so_that_they_do_not_fit(limit, spent, needed, shown):
    limits = BudgetLimits.of(usd=limit)
    used = Amounts(nano_usd=round(spent * 1e9))
    state = BudgetState(limits=limits, map_limits=limits, spent=used)
    text = over_budget(Amounts(nano_usd=round(needed * 1e9)), state, is_reduce=False)
    words = "the run's budget of {} has no room for this call: {} spent, and it may use {}"
    assert text == words.format(*shown)


MOST = Amounts(nano_usd=10, calls=1, tokens=3)


@pytest.mark.parametrize(
    ("in_flight", "begun", "spare"),
    [
        # With few calls, each one asks.
        (0, 0, 0),
        (0, 8, 0),
        (35, 8, 0),
        (0, 9, 36),
        (9, 9, 36),
        # Calls that take long are begun one by one.
        (36, 0, 18),
        (200, 3, 100),
        (200, 40, 160),
    ],
)
def test_a_process_has_spare_room_for_the_calls_that_it_begins_soon(in_flight, begun, spare):
    held = Amounts(nano_usd=10 * in_flight, calls=in_flight, tokens=3 * in_flight)
    expected = Amounts(nano_usd=10 * spare, calls=spare, tokens=3 * spare)
    assert spare_room(held, begun=begun, most=MOST) == expected


@pytest.mark.parametrize(
    ("limits", "spent", "held", "expected"),
    [
        (BudgetLimits(nano_usd=1_000), 0, 0, True),
        (BudgetLimits(nano_usd=999), 0, 0, False),
        (BudgetLimits(nano_usd=1_002), 1, 1, True),
        (BudgetLimits(nano_usd=1_001), 1, 1, False),
        (BudgetLimits(nano_usd=1_000, calls=99), 0, 0, False),
        (BudgetLimits(calls=100, tokens=299), 0, 0, False),
    ],
)
def test_only_a_budget_with_room_for_very_many_calls_has_spare_room(limits, spent, held, expected):
    state = BudgetState(
        # What is kept for the reduce is no spare room.
        limits=BudgetLimits(),
        map_limits=limits,
        spent=Amounts(nano_usd=spent),
        held=Amounts(nano_usd=held),
    )
    assert has_spare(MOST, state) is expected
    assert needed_for_spare(MOST) == Amounts(nano_usd=1_000, calls=100, tokens=300)


def test_a_count_that_sees_no_call_begin_halves_the_pace_of_a_process():
    seen, now = [], 0
    for begun in (8, 0, 0, 100, 60, 20, 70, 0, 0, 0, 0, 0, 0, 0):
        now = pace(begun, before=now)
        seen.append(now)
    assert seen == [8, 4, 2, 100, 60, 30, 70, 35, 17, 8, 4, 2, 1, 0]
