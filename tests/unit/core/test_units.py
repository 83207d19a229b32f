"""Numbers as people read them."""

from __future__ import annotations

import pytest

from fanout.core.records import NO_CALL, Usage, total_saved, total_usage
from fanout.core.units import (
    byte_size,
    clock,
    dollars,
    duration,
    exact_percent,
    known,
    moment,
    percent,
    plain,
    plural,
    share,
)


@pytest.mark.parametrize(
    ("part", "whole", "said"),
    [
        (0, 9, "0%"), (9, 9, "100%"), (1, 3, "33.3%"), (0, 0, "none"),
        (999_999, 1_000_000, "more than 99.9%"), (1, 1_000_000, "less than 0.1%"),
    ],
)  # fmt: skip
def test_only_all_is_said_to_be_all(part, whole, said):
    assert plain(share(part, whole)) == said


@pytest.mark.parametrize(
    ("part", "whole", "said"),
    [
        (0, 9, "0.0%"), (9, 9, "100.0%"), (2, 3, "66.7%"), (0, 0, ""), (9_999, 10_000, "99.9%"),
        (999, 1_000, "99.9%"), (1, 10_000, "0.0%"),
    ],
)  # fmt: skip
def test_only_all_is_a_hundred_percent(part, whole, said):
    assert percent(part, whole) == said


@pytest.mark.parametrize(
    ("part", "said"),
    [(0.95, "95.0%"), (0.9999, "99.99%"), (1, "100.0%"), (0.125, "12.5%"), (1 / 3, "33.333333%"),
     (0, "0.0%"), (0.285, "28.5%"), (0.00001, "0.001%")],
)  # fmt: skip
def test_a_share_that_a_user_set_is_shown_as_it_is(part, said):
    assert exact_percent(part) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 ms"), (0.000_04, "0.04 ms"), (0.34, "340 ms"), (0.9996, "1 s"), (3.456, "3.46 s"),
        (42.04, "42 s"), (61, "1 min 1 s"), (3600, "1 h"), (90_000, "1 d 1 h"),
    ],
)  # fmt: skip
def test_durations_are_said_in_units_that_fit(seconds, said):
    assert plain(duration(seconds)) == said


def test_costs_are_said_with_the_digits_that_they_need():
    costs = (None, 0.0, 0.00123, 1234.5, 0.01, 0.5, 0.025, 0.99999, 0.0000123, 1e-9, 1e-300)
    assert [dollars(n) for n in costs] == [
        "unknown", "$0.00", "$0.0012", "$1,234.50", "$0.01", "$0.50", "$0.025", "$1.00",
        "$0.000012", "$0.000000001", "$0.00",
    ]  # fmt: skip


def test_costs_are_said_with_the_decimals_that_are_asked_for():
    costs = (0.9996, 1.2345, 1234.5, 0.000_012_3, 5.0)
    assert [dollars(n, decimals=2) for n in costs] == [
        "$1.00", "$1.23", "$1,234.50", "$0.000012", "$5.00",
    ]  # fmt: skip
    assert [dollars(n, decimals=4) for n in costs] == [
        "$0.9996", "$1.2345", "$1,234.50", "$0.000012", "$5.00",
    ]  # fmt: skip


def test_sizes_are_said_in_the_unit_that_fits():
    shown = [byte_size(n) for n in (0, 999, 18_400, 999_999, 1_000_000, 2_560_000_000)]
    assert shown == ["0 bytes", "999 bytes", "18 kB", "1000 kB", "1.0 MB", "2,560.0 MB"]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0.0 s"), (59.94, "59.9 s"), (60, "1:00"), (245.9, "4:05"), (3599, "59:59"),
     (3600, "1:00:00"), (360_061, "100:01:01")],
)  # fmt: skip
def test_a_clock_shows_hours_only_where_there_are_some(seconds, shown):
    assert clock(seconds) == shown


def test_counts_and_moments():
    assert [known(n) for n in (None, 0, 1234)] == ["?", "0", "1,234"]
    assert [plural(n, "call", "calls") for n in (0, 1, 2000)] == [
        "0 calls",
        "1 call",
        "2,000 calls",
    ]
    assert moment(0) == "1970-01-01 00:00:00 UTC"


@pytest.mark.parametrize(
    ("usages", "total"),
    [
        ([], NO_CALL),
        ([Usage(calls=1, input_tokens=2)], Usage(calls=1, input_tokens=2)),
        ([Usage(calls=1, input_tokens=2, output_tokens=3, cost_usd=0.5)] * 2,
         Usage(calls=2, input_tokens=4, output_tokens=6, cost_usd=1.0)),
        # A branch that made no call.
        ([Usage(), Usage(calls=1, input_tokens=2, cost_usd=0.5), Usage()],
         Usage(calls=1, input_tokens=2, cost_usd=0.5)),
        ([Usage()], NO_CALL),
        ([Usage(), Usage()], NO_CALL),
        ([Usage(calls=1, input_tokens=0, output_tokens=0, cost_usd=0.0),
          Usage(calls=2, input_tokens=1)],
         Usage(calls=3, input_tokens=1)),
    ],
)  # fmt: skip
def test_a_sum_with_an_unknown_is_unknown(usages, total):
    assert total_usage(usages) == total


def test_without_a_kept_answer_nothing_is_saved():
    assert total_saved([]) == total_saved([Usage(), NO_CALL]) == NO_CALL
