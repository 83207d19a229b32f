"""A quota of a minute that a provider does not tell is found out, and kept to."""

from __future__ import annotations

import itertools
import random

import pytest
from msgspec.structs import replace
from provider_limits import Quota

from fanout.core.records import ErrorKind
from fanout.policy.minute_quota import UNKNOWN, MinuteQuota, metered
from tests.unit.policy.test_outages import Fleet, error

NOW = 10_000.0
FULL = MinuteQuota(began_at=NOW - 60, taken=1_200, whole=1_200, is_used_up=True)


def kept(done, refused, spans, *, for_s=61, noise=0.0):
    """Return a quota to whose pace calls have kept for so long."""
    return MinuteQuota(
        pace=1_000.0,
        began_at=1.0,
        changed_at=NOW - for_s,
        since_at=NOW - for_s,
        since=(done, refused, spans, NOW - 1),
        noise=noise,
    )


def after(quota, *, done=0, refused=0, is_starved=False, now=NOW):
    return metered(quota, done=done, refused=refused, is_starved=is_starved, now=now)


@pytest.mark.parametrize(
    ("quota", "news", "pace"),
    [
        (FULL, {"done": 3}, 1_182.0),
        # It did not come back after a minute, took too few, or the begin of its minute is unknown.
        (FULL, {"done": 3, "now": NOW + 10}, None),
        (FULL, {"done": 3, "now": NOW - 10}, None),
        (MinuteQuota(began_at=NOW - 60, whole=5, is_used_up=True), {"done": 3}, None),
        (MinuteQuota(is_used_up=True), {"done": 3}, None),
        # Many calls at the end of a minute are refused nevertheless: the pace becomes a little lower.
        (kept(990, 9, 1), {"refused": 1}, 985.0),
        (kept(990, 1, 1), {"refused": 1}, 1_000.0),
        (kept(990, 9, 1, for_s=59), {"refused": 1}, 1_000.0),
        # They are refused all the time, or as many as usual.
        (kept(980, 20, 9), {"refused": 1}, 1_000.0),
        (kept(980, 20, 1, noise=0.02), {"refused": 1}, 1_000.0),
        (kept(9_900, 0, 0, for_s=601), {"done": 1}, 1_015.0),
        # If it takes none again, it is kept to, and measured again.
        (kept(50, 9, 1), {"is_starved": True}, 1_000.0),
        (replace(FULL, pace=1_000.0, changed_at=1.0), {"done": 3}, 1_182.0),
        (replace(FULL, pace=1_000.0, changed_at=1.0), {"done": 3, "now": NOW + 10}, 1_000.0),
        (UNKNOWN, {"done": 9, "refused": 1}, None),
    ],
)
def test_what_it_took_in_a_minute_that_was_used_up_is_its_quota(quota, news, pace):
    assert after(quota, **news).pace == (None if pace is None else pytest.approx(pace))


def test_calls_are_counted_from_the_begin_of_a_minute():
    quota = after(MinuteQuota(is_used_up=True), done=2)
    for _ in range(4):
        quota = after(quota, done=10, now=NOW + 1)
    spent = after(quota, refused=1, is_starved=True, now=NOW + 20)
    assert (spent.whole, spent.is_used_up) == (42, True)
    assert spent.pace == pytest.approx(0.985 * 42), "what waits begins at this pace"
    assert after(spent, done=1, now=NOW + 30).pace is None, "it was none of a minute"
    assert after(spent, done=1, now=NOW + 60).pace == pytest.approx(0.985 * 42)


@pytest.mark.parametrize(
    ("tells", "in_flight", "noise"),
    [("nothing", 90, 0.0), ("wait", 8, 0.0), ("nothing", 20, 0.02)],
)
def test_a_fleet_uses_a_quota_that_it_has_found_out_without_refusals(
    monkeypatch, tells, in_flight, noise
):
    """Windows of a minute without headers: the fourth minute and those after it count.

    Also where more calls wait than the quota of a minute has, and where some are refused at random.
    """
    fleet, chance, random_refusals = Fleet(monkeypatch), random.Random(3), []
    random.seed(1)
    quota = Quota(rpm=120, tpm=0, kind="window", tells=tells, clock=fleet.loop.time)

    def fate(_prompt, now):
        is_taken, headers = quota.take(1)
        if is_taken and chance.random() < noise:
            random_refusals.append(now)
            return error(ErrorKind.RATE_LIMITED, status=429)
        if is_taken:
            return None
        told_ms = headers.partition("retry-after-ms: ")[2].strip()
        wait_s = float(told_ms) / 1_000 if told_ms else None
        return error(ErrorKind.RATE_LIMITED, status=429, retry_after_s=wait_s)

    results = fleet.run(
        fate, branches=580 + 2 * in_flight, in_flight=in_flight, latency_s=(0.5, 1.5)
    )
    assert {result.kind for result in results.values()} == {None}
    steady = list(itertools.islice(quota.by_second, 180, 300))
    taken, refused = (sum(second[n] for second in steady) for n in range(2))
    # Those that are refused at random are not counted as the quota that they are.
    assert taken >= (0.97 - 2 * noise) * 240
    assert refused <= 0.005 * taken
    assert bool(random_refusals) == bool(noise)
