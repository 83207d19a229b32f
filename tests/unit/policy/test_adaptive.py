"""How many calls a fleet has in flight where the provider tells no limit."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from fanout.policy.adaptive import CallWindow, Member, WindowReport, reported, shares, total_of

LONG = 1_000.0


def window(size=40.0, *, demand=100, cut_ago=10.0, **fields):
    members = {"a": Member(demand, LONG)}
    return CallWindow(
        **{"size": size, "opened_at": 0.0, "cut_at": LONG - cut_ago, "members": members, **fields}
    )


def report(process="a", **fields):
    return WindowReport(process=process, **{"in_flight": 40, "waiting": 60, **fields})


def after(before, now=LONG, **fields):
    return reported(before, report(**fields), now=now)


def test_a_fleet_without_refusals_has_no_window():
    assert after(None, done=1_000, busy_s=5.0) is None


def test_the_first_refusal_opens_a_window_that_all_processes_bring_their_calls_into():
    opened = after(None, in_flight=40, refused_age_s=0.1)
    assert (opened.size, opened.cut_at) == (30, LONG)
    both = reported(opened, report("b", in_flight=20), now=LONG + 1)
    assert both.size == 45
    late = reported(both, report("c", in_flight=20), now=LONG + 4)
    assert late.size == 45


@pytest.mark.parametrize("cause", [{"slow_s": 60.0}, {"refused_age_s": 0.1}])
def test_a_window_of_an_outage_is_as_wide_as_what_the_fleet_had_before_it(cause):
    """Few calls are in flight then, as each fails at once or all have timed out together."""
    opened = after(None, in_flight=1, waiting=0, usual=40.0, **cause)
    assert opened.size == 30
    both = reported(opened, report("b", in_flight=0, waiting=1, usual=20.0), now=LONG + 4)
    assert both.size == 45
    late = reported(both, report("c", in_flight=1, usual=20.0), now=LONG + 6)
    assert late.size == 45


def lately(seconds, busy_s):
    """Return the last seconds of a fleet as a slice."""
    return ((LONG - seconds, seconds, busy_s),)


FULL = {"done": 320, "slices": lately(8.0, 320.0), "cut_ago": 8.0}


@pytest.mark.parametrize(
    ("before", "refused_age_s", "size", "ceiling"),
    [
        # Three quarters, once for each burst.
        (window(**FULL), 0.2, 30, 40),
        (window(**FULL | {"cut_ago": 0.5}), 0.2, 40, None),
        (window(**FULL | {"cut_ago": 3.0}), 2.5, 40, None),
        # A provider that takes no calls at all says nothing of how many it takes.
        (window(done=0), 0.2, 40, None),
        (window(done=45, slices=lately(8.0, 45.0)), 0.2, 40, None),
        # It was larger by far than what succeeded: 100 s of calls in 10 s.
        (window(200.0, done=400, slices=lately(10.0, 100.0), demand=300), 0.2, 7.5, 10),
        # Over a minute with refusals the provider has given what it can: 39 calls at a time.
        (window(done=780, slices=lately(20.0, 780.0)), 0.2, 30, 39),
        (window(done=700, slices=lately(20.0, 700.0)), 0.2, 30, 38),
        # When the window has just been opened, it has not been a minute yet.
        (window(done=700, slices=lately(20.0, 700.0), opened_at=LONG - 5), 0.2, 30, 40),
        # A ceiling that is refused itself was too high.
        (window(ceiling=40.0, **FULL), 0.2, 30, 38.8),
        (window(43.0, ceiling=40.0, **FULL), 0.2, 32.25, 40.85),
        (window(1.0, done=30, slices=lately(8.0, 8.0), cut_ago=8.0), 0.2, 1, 1),
    ],
)
def test_a_burst_of_refusals_makes_the_window_smaller(before, refused_age_s, size, ceiling):
    cut = after(before, refused_age_s=refused_age_s)
    assert (cut.size, cut.ceiling) == (size, ceiling)


@pytest.mark.parametrize(
    ("before", "done", "size"),
    [
        (window(), 25, 41),
        (window(), 10, 40.4),
        (window(ceiling=40.5), 25, 40.5),
        # After a minute without a refusal a tenth more is tried, and no more than that.
        (window(ceiling=40.0, cut_ago=61.0), 25, 41),
        (window(43.9, ceiling=40.0, cut_ago=70.0, over_at=LONG - 5), 25, 44),
        # Calls that are not there cannot fill it.
        (window(demand=30), 25, 40),
    ],
)
def test_successes_make_the_window_larger_up_to_the_ceiling(before, done, size):
    demand = before.members["a"].demand
    grown = after(before, done=done, in_flight=demand, waiting=0)
    assert grown.size == pytest.approx(size)


def test_a_probe_that_was_fine_raises_the_ceiling():
    before = window(44.0, ceiling=40.0, cut_ago=75.0, over_at=LONG - 11)
    grown = after(before, done=25)
    assert (grown.size, grown.ceiling) == (45, 44)


def test_a_window_that_nobody_needs_ends():
    assert after(window(120.0, cut_ago=61.0), in_flight=100, waiting=0) is None
    few_left = window(120.0, cut_ago=61.0, ceiling=110.0)
    assert after(few_left, in_flight=5, waiting=0) is not None, "a run that ends shows nothing"


def settle(limit, calls, seconds, latency_s=1.0):
    """Run a fleet against a provider that has no more than ``limit`` calls in flight."""
    found, refused, accepted, sizes = None, 0, 0, []
    for tick in range(int(seconds * 2)):
        now = LONG + tick / 2
        size = (
            calls if found is None or found.size is None else min(calls, total_of(found, now=now))
        )
        is_over = size > limit
        done = int(min(size, limit) / latency_s / 2)
        accepted, refused = accepted + done, refused + max(0, size - limit)
        found = reported(
            found,
            report(
                in_flight=min(size, limit),
                waiting=calls - size,
                done=done,
                busy_s=done * latency_s,
                refused_age_s=0.01 if is_over else None,
            ),
            now=now,
        )
        sizes.append(size)
    return accepted, refused, sizes


@pytest.mark.parametrize("limit", [8, 20, 50, 150])
def test_it_settles_at_what_the_provider_takes(limit):
    _, _, sizes = settle(limit, calls=256, seconds=200)
    steady = sizes[200:]
    assert 0.9 * limit <= sum(min(size, limit) for size in steady) / len(steady)
    assert sum(max(0, size - limit) for size in steady) < 0.01 * sum(steady)


def test_a_slow_server_gets_fewer_calls_if_that_makes_them_faster():
    slow = after(None, in_flight=100, slow_s=20.0)
    assert (slow.size, slow.slow_s) == (75, 20)
    waits = after(slow, now=LONG + 30, done=60, busy_s=900.0)
    assert waits.slow_s == 20, "the calls of before have not ended"
    crowded = after(slow, now=LONG + 41, done=200, busy_s=3_000.0)
    assert (crowded.size, crowded.slow_s, crowded.ceiling) == (75, None, 75)
    again = after(crowded, now=LONG + 41.5, slow_s=15.0)
    assert again.size == 0.75 * 75
    # It is as slow with fewer calls: it is not crowded, and gets all of them for a while.
    alike = after(slow, now=LONG + 41, done=60, busy_s=1_170.0)
    assert (alike.size, shares(alike, now=LONG)) == (None, None)
    assert after(alike, now=LONG + 50, slow_s=20.0).size is None
    assert after(alike, now=LONG + 50, refused_age_s=0.1, in_flight=100).size == 75
    assert after(alike, now=LONG + 700) is None


@pytest.mark.parametrize(
    ("size", "demands", "given"),
    [
        (40, {"a": 100, "b": 100}, {"a": 20, "b": 20}),
        (40, {"a": 5, "b": 100}, {"a": 5, "b": 35}),
        (40, {"a": 5, "b": 10}, {"a": 5, "b": 10}),
        (10, {"a": 9, "b": 9, "c": 9}, {"a": 3, "b": 3, "c": 4}),
        (2, {"a": 9, "b": 9, "c": 9}, {"a": 0, "b": 1, "c": 1}),
        (40, {}, {}),
    ],
)
def test_each_process_gets_what_it_wants_or_as_much_as_every_other(size, demands, given):
    members = {name: Member(demand, LONG) for name, demand in demands.items()}
    assert shares(window(float(size), members=members), now=0.0) == given


def test_fewer_calls_than_processes_take_turns():
    members = {name: Member(9, LONG) for name in "abc"}
    few = window(1.0, members=members)
    turns = [shares(few, now=float(second)) for second in range(300)]
    assert all(sum(turn.values()) == total_of(few, now=n) for n, turn in enumerate(turns))
    assert {name for turn in turns for name, calls in turn.items() if calls} == set("abc")


def test_a_fraction_of_a_call_is_given_as_a_share_of_the_time():
    totals = [total_of(window(19.8), now=float(second)) for second in range(1_000)]
    assert set(totals) == {19, 20}
    assert sum(totals) / len(totals) == pytest.approx(19.8, abs=0.01)


def test_a_limit_of_a_minute_that_is_used_up_early_is_found_by_the_average():
    """1,200 calls in the first seconds of each minute, and then refusals until its end."""
    found = CallWindow(size=192.0, opened_at=LONG, cut_at=LONG)
    for tick in range(1, 120):
        now = LONG + tick / 2
        done = 96 if 100 < tick <= 112 else 0
        told = report(in_flight=10, waiting=200, done=done, busy_s=float(done))
        found = reported(found, told, now=now)
    found = reported(found, report(refused_age_s=0.1), now=LONG + 60)
    assert found.size == pytest.approx(0.75 * 19.2, rel=0.1)
    assert found.slices[0][0] < LONG + 5, "the whole minute is remembered"


def test_a_process_that_is_silent_does_not_count():
    members = {"a": Member(9, LONG - 6), "b": Member(9, LONG - 1)}
    joined = reported(window(members=members), report("c"), now=LONG)
    assert set(joined.members) == {"b", "c"}
    gone = reported(joined, replace(report("c"), in_flight=0, waiting=0), now=LONG)
    assert set(gone.members) == {"b"}


def refused_at(share_of, *, calls, seconds=300):
    """Run a fleet against a provider that refuses a share of the calls by how many there are at once."""
    found, carried, seen = CallWindow(size=float(calls), opened_at=LONG, cut_at=LONG), 0.0, []
    for tick in range(1, seconds * 2):
        now = LONG + tick / 2
        size = min(calls, total_of(found, now=now) or calls)
        carried += size / 2 * share_of(size)
        refused, carried = int(carried), carried % 1
        done = max(0, size // 2 - refused)
        told = report(
            in_flight=size,
            waiting=calls - size,
            done=done,
            busy_s=float(done),
            refused=refused,
            refused_age_s=0.01 if refused else None,
        )
        found = reported(found, told, now=now) or found
        seen.append(found)
    return seen


@pytest.mark.parametrize("share", [0.025, 0.05, 0.25, 0.4, 0.5])
def test_refusals_that_fewer_calls_do_not_lower_are_noise(share):
    *_, last = seen = refused_at(lambda _size: share, calls=64)
    assert last.noise == pytest.approx(share, abs=0.05)
    assert min(found.size for found in seen[200:]) >= 63, "all calls go on"


@pytest.mark.parametrize("limit", [6, 20, 40, 60])
def test_refusals_for_too_many_calls_are_no_noise(limit):
    seen = refused_at(lambda size: max(0.0, 1 - limit / size), calls=64)
    assert {found.noise for found in seen} == {None}
    assert seen[-1].size <= 1.1 * limit + 1


def test_a_minute_without_any_success_is_no_noise():
    """A quota of a minute: calls that follow each other quickly, and then refusals for long."""
    found = CallWindow(size=64.0, opened_at=LONG, cut_at=LONG, succeeded_at=LONG)
    for tick in range(1, 1_200):
        is_open = tick % 120 < 30
        told = report(
            done=32 if is_open else 0,
            busy_s=32.0 if is_open else 0.0,
            refused=0 if is_open else 1,
            refused_age_s=None if is_open else 0.01,
        )
        found = reported(found, told, now=LONG + tick / 2) or found
        assert found.noise is None


def test_noise_that_grows_or_ends_is_none_any_more():
    noisy = window(64.0, noise=0.25, done=200, refused=70, succeeded_at=LONG)
    assert after(noisy, refused_age_s=0.1, refused=1).noise == pytest.approx(0.26, abs=0.01)
    worse = window(64.0, noise=0.25, done=200, refused=180, succeeded_at=LONG)
    cut = after(worse, refused_age_s=0.1, refused=1)
    assert (cut.noise, cut.size) == (None, 48)
    starved = window(64.0, noise=0.25, succeeded_at=LONG - 9, call_s=1.0)
    assert after(starved, refused_age_s=0.1, refused=1).noise is None
    quiet = window(64.0, noise=0.015, done=200, succeeded_at=LONG)
    assert after(quiet).noise is None
