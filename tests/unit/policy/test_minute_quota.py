"""A quota of a minute that a provider does not tell is found out, and kept to."""

from __future__ import annotations

import itertools

import pytest
from provider_limits import Quota

from fanout.core.records import ErrorKind
from fanout.policy.minute_quota import UNKNOWN, MinuteQuota, metered
from tests.unit.policy.test_outages import Fleet, error

NOW = 10_000.0
FULL = MinuteQuota(began_at=NOW - 60, taken=1_200, whole=1_200, is_used_up=True)


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
        # Calls that are refused nevertheless, long after the last change, lower the pace a little.
        (MinuteQuota(pace=1_000.0, changed_at=NOW - 61), {"refused": 1}, 985.0),
        (MinuteQuota(pace=1_000.0, changed_at=NOW - 59), {"refused": 1}, 1_000.0),
        (MinuteQuota(pace=1_000.0, changed_at=NOW - 601), {"done": 1}, 1_015.0),
        # If it takes none again, it is measured again.
        (MinuteQuota(pace=1_000.0, changed_at=NOW - 9), {"is_starved": True}, None),
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
    assert after(spent, done=1, now=NOW + 60).pace == pytest.approx(0.985 * 42)


@pytest.mark.parametrize("tells", ["nothing", "wait"])
def test_a_fleet_uses_a_quota_that_it_has_found_out_without_refusals(monkeypatch, tells):
    """Windows of a minute without headers: the third minute and those after it count."""
    fleet = Fleet(monkeypatch)
    quota = Quota(rpm=120, tpm=0, kind="window", tells=tells, clock=fleet.loop.time)

    def fate(_prompt, _now):
        is_taken, headers = quota.take(1)
        if is_taken:
            return None
        told_ms = headers.partition("retry-after-ms: ")[2].strip()
        wait_s = float(told_ms) / 1_000 if told_ms else None
        return error(ErrorKind.RATE_LIMITED, status=429, retry_after_s=wait_s)

    results = fleet.run(fate, branches=700, in_flight=8, latency_s=(0.5, 1.5))
    assert {result.kind for result in results.values()} == {None}
    steady = list(itertools.islice(quota.by_second, 180, 300))
    taken, refused = (sum(second[n] for second in steady) for n in range(2))
    assert taken >= 0.97 * 240
    assert refused <= 0.005 * taken
