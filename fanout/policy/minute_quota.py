"""The policy for a quota of a minute that a provider does not tell: it is found out, and kept to.

Such a provider takes calls until the quota is used up, then refuses all of them until the next minute. What
it has taken from the moment in which it takes calls again is the quota, if it does so again a minute later.
Until then it is kept to as if it were, so that the calls that waited do not all begin at once.

Refusals of calls that keep to it lower the pace, unless they come at random: all the time, and not at the
end of a minute.
"""

from __future__ import annotations

import math

import msgspec

__all__ = ["UNKNOWN", "MinuteQuota", "metered"]

# What a minute seems to last: when it begins is found out by probes.
_LEAST_S, _MOST_S = 52.0, 68.0
_LEAST_CALLS = 10
# The share of the quota that is used, what becomes of it when calls are refused nevertheless, once in so
# many seconds, and when more is tried.
_SHARE = 0.985
_LOWER = 0.985
_LOWER_EACH_S = 60.0
# A share of calls that may be refused without that; and the refusals at random that may be more than usual,
# in standard deviations.
_FEW = 0.003
_DEVIATIONS = 3.0
# Refusals are random if they come in this share of the spans of so many seconds.
_SPAN_S = 5.0
_SPREAD = 0.5
_HIGHER = 1.015
_HIGHER_EACH_S = 600.0
_NONE = (0, 0, 0, 0.0)


class MinuteQuota(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of a quota; times are seconds of the server's clock.

    Attributes:
        pace: Calls a minute to keep to; None while the quota is unknown.
        began_at: When the provider took calls again; 0 if it was not seen.
        taken: Calls that it took since.
        whole: Those of a minute that was used up; None if it was not.
        is_used_up: Whether it refuses all calls.
        changed_at: When the pace last changed; 0 if it has yet to be confirmed.
        noise: The share of calls that is refused at random.
        since_at: Since when calls are counted that keep to the pace.
        since: Those that succeeded and that were refused since then, in how many spans, and when the
            last of these began.
    """

    pace: float | None = None
    began_at: float = 0.0
    taken: int = 0
    whole: int | None = None
    is_used_up: bool = False
    changed_at: float = 0.0
    noise: float = 0.0
    since_at: float = 0.0
    since: tuple[int, int, int, float] = _NONE


UNKNOWN = MinuteQuota()


def metered(
    quota: MinuteQuota, *, done: int, refused: int, is_starved: bool, now: float
) -> MinuteQuota:
    """Return what is known after a report.

    Args:
        quota: What was known.
        done: Calls that succeeded since the last report.
        refused: Calls that were refused since then.
        is_starved: Whether calls have been refused for long without any success.
        now: The time.
    """
    if done and quota.is_used_up:
        return _begun(quota, done, now)
    if is_starved and not quota.is_used_up:
        return _used_up(quota)
    if quota.is_used_up or not quota.began_at:
        return quota
    quota = msgspec.structs.replace(quota, taken=quota.taken + done)
    if quota.pace is None or not quota.changed_at:
        return quota
    return _adapted(_counted(quota, done, refused, now), now)


def _begun(quota: MinuteQuota, done: int, now: float) -> MinuteQuota:
    """Return a quota of which a new minute has begun."""
    fresh = msgspec.structs.replace(
        quota, began_at=now, taken=done, whole=None, is_used_up=False, since_at=now, since=_NONE
    )
    is_minute = _LEAST_S <= now - quota.began_at <= _MOST_S
    if is_minute and quota.whole is not None and quota.whole >= _LEAST_CALLS:
        return msgspec.structs.replace(fresh, pace=_SHARE * quota.whole, changed_at=now)
    return fresh if quota.changed_at else msgspec.structs.replace(fresh, pace=None)


def _used_up(quota: MinuteQuota) -> MinuteQuota:
    """Return a quota of which the provider has refused all calls for long."""
    whole = quota.taken if quota.began_at else None
    pace = quota.pace
    if pace is None and whole is not None and whole >= _LEAST_CALLS:
        pace = _SHARE * whole
    return msgspec.structs.replace(quota, pace=pace, whole=whole, is_used_up=True)


def _counted(quota: MinuteQuota, done: int, refused: int, now: float) -> MinuteQuota:
    """Return a quota with the calls of a report that kept to its pace."""
    all_done, all_refused, spans, span_at = quota.since
    if refused and now - span_at >= _SPAN_S:
        spans, span_at = spans + 1, now
    since = (all_done + done, all_refused + refused, spans, span_at)
    return msgspec.structs.replace(quota, since=since)


def _adapted(quota: MinuteQuota, now: float) -> MinuteQuota:
    """Return a quota with a pace that suits the refusals of the last minute."""
    done, refused, spans, _ = quota.since
    for_s, calls = now - quota.since_at, done + refused
    if for_s <= _LOWER_EACH_S or not calls or quota.pace is None:
        return quota
    usual = quota.noise * calls
    is_usual = refused <= usual + _DEVIATIONS * math.sqrt(usual) + _FEW * calls
    pace, noise, changed_at = quota.pace, quota.noise, quota.changed_at
    if is_usual or spans >= max(2.0, _SPREAD * min(refused, for_s / _SPAN_S)):
        noise = refused / calls
        if now - changed_at > _HIGHER_EACH_S:
            pace, changed_at = _HIGHER * pace, now
    else:
        pace, changed_at = _LOWER * pace, now
    return msgspec.structs.replace(
        quota, pace=pace, noise=noise, changed_at=changed_at, since_at=now, since=_NONE
    )
