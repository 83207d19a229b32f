"""The arithmetic that the server does for rate limits and breakers, by a clock that tests move."""

from __future__ import annotations

import pytest

from fanout.core.rate_limits import BURST_S, MAX_AHEAD_S, CallTokens, Rates
from fanout.policy.outages import CLOSED, FORGET_S, MAX_PROBE_S, REOPEN_S, ask, trip

EACH_SECOND = Rates(requests_per_minute=60)


@pytest.fixture(autouse=True)
def clock(server_clock):
    return server_clock


def waits(store, times, rates, tokens=0):
    """Take slots one after the other; return when each may begin."""
    slots = [store.reserve_calls("m", rates=rates, tokens=CallTokens(tokens)) for _ in range(times)]
    assert all(slot.is_taken for slot in slots)
    return [pytest.approx(slot.wait_s, abs=1e-5) for slot in slots]


def test_slots_are_spaced_behind_what_an_idle_second_leaves(store):
    assert waits(store, 5, Rates(requests_per_minute=120)) == [0, 0, 0, 0.5, 1.0]


def test_over_a_long_time_the_rate_holds(store, clock):
    began, taken = clock.now, 0
    while clock.now < began + 60:
        slot = store.reserve_calls("m", rates=Rates(requests_per_minute=240))
        clock.now += slot.wait_s
        taken += 1
    assert taken == pytest.approx((60 + BURST_S) * 4, abs=2)


def test_the_slower_of_two_limits_decides(store):
    rates = Rates(requests_per_minute=600, tokens_per_minute=60)
    assert waits(store, 3, rates, tokens=4) == [0, 3, 7]


def test_a_limit_that_is_not_asked_for_does_not_hold_up(store):
    waits(store, 9, EACH_SECOND)
    waits(store, 1, Rates(tokens_per_minute=60), tokens=1)
    assert waits(store, 1, Rates()) == [0]


def test_nothing_is_booked_far_ahead(store):
    waits(store, 1, EACH_SECOND)
    store.pause_model("m", MAX_AHEAD_S + 3)
    before = store.limits()
    slot = store.reserve_calls("m", rates=EACH_SECOND)
    assert not slot.is_taken
    assert slot.wait_s == pytest.approx(3 + MAX_AHEAD_S / 2, abs=1e-5)
    assert store.limits() == before


def test_a_use_that_no_calls_can_have_had_is_forgotten(store):
    """A provider once counted a billion tokens: calls would wait for days."""
    rates = Rates(tokens_per_minute=60_000)
    waits(store, 1, rates, tokens=1_000)
    store.correct_slot("m", rates=rates, tokens=CallTokens(1e9))
    assert waits(store, 3, rates, tokens=1_000) == [0, 0, 1]
    # A call that uses as much by itself is no mistake.
    rates = Rates(input_tokens_per_minute=10)
    waits(store, 1, rates, tokens=1_000)
    slot = store.reserve_calls("m", rates=rates, tokens=CallTokens(1_000))
    assert (slot.is_taken, slot.wait_s) == (
        False,
        pytest.approx(6_000 - BURST_S - MAX_AHEAD_S / 2, abs=1e-4),
    )


def test_behind_a_pause_slots_are_spaced_too(store):
    store.pause_model("m", 4)
    assert waits(store, 4, EACH_SECOND) == [4, 4, 5, 6]


def test_the_probes_of_the_fleet_are_those_of_a_worker_alone(store, clock, monkeypatch):
    """A worker that cannot ask the server goes by fanout.policy.outages: both are one policy."""
    monkeypatch.setattr("random.random", lambda: 0.0)
    began, probes, of_worker = clock.now, [], []
    assert store.trip_breaker("m")
    breaker = trip(CLOSED, now=began)
    for quarter in range(1, 480):
        clock.now = began + quarter / 4
        standing = store.pause_of("m")
        alone, breaker = ask(breaker, now=clock.now)
        probes += [quarter // 4] * standing.is_probe
        of_worker += [quarter // 4] * alone.is_probe
        assert standing.down_s == pytest.approx(alone.down_s, abs=1e-5)
        assert standing.wait_s <= MAX_PROBE_S
    assert probes == of_worker == [1, 3, *range(7, 120, 4)]


def test_a_breaker_that_was_closed_stays_so_for_a_while_and_an_old_one_is_forgotten(store, clock):
    store.trip_breaker("m")
    store.close_breaker("m")
    clock.now += REOPEN_S - 1
    assert not store.trip_breaker("m")
    clock.now += 2
    assert store.trip_breaker("m")
    clock.now += FORGET_S + 2
    assert store.pause_of("m").down_s is None
    assert store.limits()["m"].down_s is None


def test_one_caller_of_a_fleet_is_the_first_with_a_prefix(store):
    assert store.claim_prefixes(["a", "b"], lasts_s=30) == ["first", "first"]
    assert store.claim_prefixes(["a", "c"], lasts_s=30) == ["wait", "first"]
    store.note_prefixes({"a": True, "b": False}, lasts_s=240)
    assert store.claim_prefixes(["a", "b", "c"], lasts_s=30) == ["warm", "first", "wait"]


def test_what_is_kept_of_a_prefix_lapses(store):
    store.claim_prefixes(["a", "b"], lasts_s=30)
    store.note_prefixes({"a": True}, lasts_s=240)
    redis = store._redis
    (led,), (warm,) = (list(redis.scan_iter(f"*:prefix:{key}")) for key in "ba")
    assert 0 < redis.ttl(led) <= 30 < redis.ttl(warm) <= 240
