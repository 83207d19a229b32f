"""The policy for rate limits that a provider's headers tell: which are believed, and the pace by them.

A provider keeps a limit as a bucket that refills all the time, or as a window of a minute that begins
anew. ``remaining`` and ``reset`` tell for both how fast calls may begin: what remains, over the time
until all of it is there again. At a bucket that is half full this is the limit itself, so that a fleet
that keeps to it uses all of the quota, with half a minute's worth of it as a margin.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from fanout.core.rate_limits import LearntLimits, Rates

if TYPE_CHECKING:
    from fanout.core.rate_limits import SeenLimit, SeenLimits

__all__ = ["LimitLearner", "has_risen", "pace_factor", "per_minute"]

_MINUTE_S = 60.0
_DAY_S = 86_400.0
# Pacing by the limits of longer periods would waste the time until they are used up.
_LONGEST_PERIOD_S = 600.0
# The bucket of a minute is full again, and its window over, after no more seconds than these.
_LONGEST_RESET_S = 90.0
# How many replies must agree that a limit is that of a day, or of a second or less: one may do so by chance,
# as at the end of a window.
_AGREE = 3
_SHORTEST_S, _SECOND_S = 0.001, 1.0
# A provider that answers more than this many times a limit in a minute, and some more calls, means another
# one by it: a bucket gives at most twice the limit, as do two windows.
_CONTRADICTS, _MORE = 2, 2
_RISEN = 2
_DAY_TOLERANCE = 0.1

# Calls begin to keep to a limit when less than this share of it remains; and no longer do when more
# than that share has remained for so long.
_TIGHT_SHARE = 0.5
_LOOSE_SHARE = 0.9
_LOOSE_S = 70.0
# The bounds of the pace, as a share of the limit. The upper one is lower for some time after a refusal
# although enough was left: the provider then counts otherwise than it tells. The lower one is higher
# near the end of a window: a call that is booked at a low pace books time of the next one.
_LOWEST, _HIGHEST = 0.1, 1.1
_ENDS_S, _LOWEST_AT_END = 6.0, 0.5
_REFUSED = ((60.0, 0.985), (600.0, 1.0))
_USED_UP_SHARE = 0.05
_NEVER = float("-inf")

_RATES = {
    "requests": "requests_per_minute",
    "tokens": "tokens_per_minute",
    "input_tokens": "input_tokens_per_minute",
    "output_tokens": "output_tokens_per_minute",
}


def per_minute(seen: SeenLimit) -> float | None:
    """Return a limit as one of a minute; None if it is not told, or if its period is too long."""
    period_s = seen.period_s or _MINUTE_S
    if seen.limit is None or period_s > _LONGEST_PERIOD_S:
        return None
    if seen.period_s is None and (seen.reset_s or 0.0) > _LONGEST_RESET_S:
        return None
    return seen.limit * _MINUTE_S / period_s


def _refill_s(seen: SeenLimit) -> float | None:
    """Return in how many seconds all of a limit is there again, if none of it is left; None if unclear."""
    if seen.limit is None or seen.remaining is None or not seen.reset_s:
        return None
    used = seen.limit - seen.remaining
    return None if used <= 0 else seen.limit * seen.reset_s / used


def _is_a_day(refill_s: float) -> bool:
    return abs(refill_s - _DAY_S) <= _DAY_TOLERANCE * _DAY_S


def pace_factor(seen: SeenLimit, *, age_s: float, refused_s: float) -> float:
    """Return the pace for a limit, as a share of it.

    Args:
        seen: The limit as a reply told it last.
        age_s: Seconds since the call of that reply began.
        refused_s: Seconds since the provider last refused a call although enough was left.
    """
    lowest = _LOWEST if (seen.reset_s or math.inf) > _ENDS_S else _LOWEST_AT_END
    highest = next((most for within_s, most in _REFUSED if refused_s < within_s), _HIGHEST)
    if seen.remaining is None or not seen.limit:
        return min(1.0, highest)
    share = seen.remaining / seen.limit
    if seen.reset_s is None:
        # A bucket, as far as is known.
        factor = share / _TIGHT_SHARE
    elif seen.reset_s <= age_s:
        # The window that it tells of is over, or the bucket full.
        factor = 1.0
    else:
        factor = share * (seen.period_s or _MINUTE_S) / seen.reset_s
    return max(lowest, min(factor, highest))


def has_risen(before: LearntLimits | None, after: LearntLimits) -> bool:
    """Return whether a limit that calls kept to has turned out to be another, much higher one."""
    if before is None or not before.is_tight:
        return False
    rates = [(getattr(before.rates, name), getattr(after.rates, name)) for name in _RATES.values()]
    return any(old is not None and (new is None or new > _RISEN * old) for old, new in rates)


class _Known(msgspec.Struct):
    """What is known of one limit of a model."""

    seen: SeenLimit
    rate: float | None = None
    began: float = _NEVER
    # How many replies in a row showed a limit of a day; of a second or less, and of how long at most.
    daily: int = 0
    short: int = 0
    short_s: float = 0.0


def _share_left(known: _Known) -> float:
    """Return the share of a limit that remains; 0 if nobody counts it, as it may be used up."""
    if known.rate is None or not known.seen.limit:
        return 1.0
    return (known.seen.remaining or 0.0) / known.seen.limit


class LimitLearner:
    """Learns the limits of one model from its replies; all times are seconds of one clock."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        # The calls that were answered in this minute, and which limit of calls they contradict.
        self._minute_from = _NEVER
        self._answered = 0
        self._contradicted: float | None = None
        self._refused_at = _NEVER
        # Since when much of all limits remains; None while it does not.
        self._loose_since: float | None = None
        self.learnt: LearntLimits | None = None

    def saw(self, seen: SeenLimits, *, began: float, now: float, is_answer: bool = True) -> bool:
        """Learn from a reply to a call that began at ``began``; return whether that is news."""
        self._count(seen, began, is_answer=is_answer)
        for name in _RATES:
            limit = getattr(seen, name)
            if limit is not None:
                self._saw(name, limit, began)
        rates = Rates(**{_RATES[name]: known.rate for name, known in self._known.items()})
        if not rates.is_limited and self.learnt is None:
            return False
        return self._becomes(LearntLimits(rates=rates, is_tight=self._is_tight(now)))

    def _count(self, seen: SeenLimits, began: float, *, is_answer: bool) -> None:
        """Note whether the provider has answered more calls in a minute than the limit that it tells."""
        if began >= self._minute_from + _MINUTE_S:
            self._minute_from, self._answered = began, 0
        self._answered += is_answer and began >= self._minute_from
        limit = None if seen.requests is None else per_minute(seen.requests)
        if limit is None:
            return
        if self._contradicted is not None and limit > self._contradicted:
            self._contradicted = None
        if self._answered > _CONTRADICTS * limit + _MORE:
            self._contradicted = limit

    def _saw(self, name: str, seen: SeenLimit, began: float) -> None:
        known = self._known.get(name)
        if known is None:
            known = self._known[name] = _Known(seen=seen)
        if seen.limit is None and known.seen.limit is not None:
            # Some servers tell it in some replies only.
            seen = msgspec.structs.replace(
                seen, limit=known.seen.limit, period_s=known.seen.period_s
            )
        if seen.period_s is None and (refill_s := _refill_s(seen)) is not None:
            if seen.remaining != known.seen.remaining:
                known.daily = min(known.daily + 1, _AGREE) if _is_a_day(refill_s) else 0
            is_short = refill_s <= _SECOND_S
            known.short = min(known.short + 1, _AGREE) if is_short else 0
            known.short_s = max(_SHORTEST_S, refill_s, known.short_s) if is_short else 0.0
        if seen.period_s is None and known.short >= _AGREE:
            seen = msgspec.structs.replace(seen, period_s=known.short_s)
        known.rate = None if known.daily >= _AGREE else per_minute(seen)
        if name == "requests" and known.rate is not None and known.rate == self._contradicted:
            known.rate = None
        if began >= known.began:
            known.seen, known.began = seen, began

    def _is_tight(self, now: float) -> bool:
        """Return whether so little is left that calls must keep to the limits."""
        least = min(map(_share_left, self._known.values()), default=1.0)
        if least < _LOOSE_SHARE:
            self._loose_since = None
        elif self._loose_since is None:
            self._loose_since = now
        if least < _TIGHT_SHARE:
            return True
        if self.learnt is None or not self.learnt.is_tight:
            return False
        is_loose = self._loose_since is not None and now - self._loose_since > _LOOSE_S
        return not is_loose or now - self._refused_at <= _REFUSED[-1][0]

    def refused(self, now: float) -> bool:
        """Note a refusal for a rate; return whether that is news for the fleet."""
        if min(map(_share_left, self._known.values()), default=1.0) > _USED_UP_SHARE:
            self._refused_at = now
        if self.learnt is None:
            return False
        return self._becomes(msgspec.structs.replace(self.learnt, is_tight=True))

    def heard(self, learnt: LearntLimits) -> None:
        """Take over what another worker has learnt."""
        self.learnt = learnt

    @property
    def has_limits(self) -> bool:
        """Whether there are limits to keep to: a refusal is then most likely for one of them."""
        return self.learnt is not None and self.learnt.rates.is_limited

    def _becomes(self, learnt: LearntLimits) -> bool:
        before, self.learnt = self.learnt, learnt
        return learnt != before

    def pace(self, now: float) -> Rates | None:
        """Return the rates to keep to; None while so much is left that no call has to wait."""
        if self.learnt is None or not self.learnt.is_tight:
            return None
        refused_s = now - self._refused_at
        paced: dict[str, float | None] = {}
        for name, rate in _RATES.items():
            limit = getattr(self.learnt.rates, rate)
            known = self._known.get(name)
            if limit is None:
                continue
            if known is None:
                paced[rate] = limit
                continue
            age_s = now - known.began
            paced[rate] = limit * pace_factor(known.seen, age_s=age_s, refused_s=refused_s)
        return Rates(**paced)
