"""How fast a run goes, of what was seen of it."""

from __future__ import annotations

import pytest

from fanout.cli.speed import Meter, Speed, eta_s
from fanout.core.records import RunStatus, Usage

from .test_progress import status


def test_speed_is_that_of_the_last_seconds():
    meter = Meter()
    assert meter.see(0, Usage(calls=0), now=0.0) == Speed()
    meter.see(1_000, Usage(calls=1_000), now=10.0)
    for second in range(11, 31):
        speed = meter.see(1_000, Usage(calls=1_000), now=float(second))
    assert (speed.branches, speed.calls, speed.input_tokens) == (0, 0, None)
    # Of a minute, as calls that take long end in bursts.
    assert speed.lately == pytest.approx(1_000 / 30)
    for second in range(31, 90):
        speed = meter.see(1_000, Usage(calls=1_000), now=float(second))
    assert speed.lately == 0


def test_looks_that_are_far_apart_have_a_speed_too():
    meter = Meter()
    meter.see(0, Usage(calls=0), now=0.0)
    assert meter.see(300, Usage(calls=600), now=100.0) == Speed(branches=3.0, calls=6.0, lately=3.0)


def test_a_retry_is_no_negative_speed():
    meter = Meter()
    meter.see(100, Usage(calls=100), now=0.0)
    assert meter.see(60, Usage(calls=110), now=1.0).branches == 0


def test_tokens_are_counted_from_the_first_call_on_and_not_from_where_they_were_unknown():
    meter = Meter()
    meter.see(0, Usage(calls=0), now=0.0)
    speed = meter.see(1, Usage(calls=1, input_tokens=30, output_tokens=4), now=2.0)
    assert (speed.input_tokens, speed.output_tokens) == (15, 2)
    meter = Meter()
    meter.see(50, Usage(calls=50), now=0.0)
    speed = meter.see(51, Usage(calls=51, input_tokens=9_000, output_tokens=70), now=2.0)
    assert (speed.input_tokens, speed.output_tokens) == (None, None)


@pytest.mark.parametrize(
    ("fields", "lately", "expected"),
    [
        ({}, 99.0, 10.0),
        ({}, 0.0, None),
        ({}, None, None),
        ({"done": 1000}, 99.0, None),
        ({"status": RunStatus.ENQUEUING}, 99.0, None),
        ({"status": RunStatus.PAUSED}, 99.0, None),
        ({"status": RunStatus.CANCELLED}, 99.0, None),
    ],
)
def test_when_all_will_have_ended_is_said_where_it_is_known(fields, lately, expected):
    assert eta_s(status(**fields), Speed(lately=lately)) == expected


def test_speed_as_json_is_per_second_and_keeps_what_is_unknown():
    assert Speed(branches=1.23456, calls=2.0, lately=7.0).to_dict() == {
        "branches_per_s": 1.23,
        "calls_per_s": 2.0,
        "input_tokens_per_s": None,
        "output_tokens_per_s": None,
    }
