"""The policy for a quota of a minute that a provider does not tell: it is found out, and kept to.

Such a provider takes calls until the quota is used up, then refuses all of them until the next minute. What
it has taken from the moment in which it takes calls again is the quota, if it does so again a minute later.
"""

from __future__ import annotations

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
_HIGHER = 1.015
_HIGHER_EACH_S = 600.0


class MinuteQuota(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of a quota; times are seconds of the server's clock.

    Attributes:
        pace: Calls a minute to keep to; None while the quota is unknown.
        began_at: When the provider took calls again; 0 if it was not seen.
        taken: Calls that it took since.
        whole: Those of a minute that was used up; None if it was not.
        is_used_up: Whether it refuses all calls.
        changed_at: When the pace last changed.
    """

    pace: float | None = None
    began_at: float = 0.0
    taken: int = 0
    whole: int | None = None
    is_used_up: bool = False
    changed_at: float = 0.0


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
    change = msgspec.structs.replace
    if done and quota.is_used_up:
        is_minute = _LEAST_S <= now - quota.began_at <= _MOST_S
        if is_minute and quota.whole is not None and quota.whole >= _LEAST_CALLS:
            return MinuteQuota(pace=_SHARE * quota.whole, began_at=now, taken=done, changed_at=now)
        return MinuteQuota(began_at=now, taken=done)
    if is_starved and not quota.is_used_up:
        whole = quota.taken if quota.began_at else None
        return change(quota, pace=None, whole=whole, is_used_up=True)
    quota = change(quota, taken=quota.taken + done) if quota.began_at else quota
    since_s, factor = now - quota.changed_at, 1.0
    if refused and since_s > _LOWER_EACH_S:
        factor = _LOWER
    elif since_s > _HIGHER_EACH_S:
        factor = _HIGHER
    if quota.pace is None or factor == 1.0:
        return quota
    return change(quota, pace=factor * quota.pace, changed_at=now)
