"""The values of the rate limiter, which one fleet shares. A script on the server does the arithmetic.

It is the generic cell rate algorithm of the ATM Forum's traffic management. For each model, the
server keeps the time until which the granted calls use up the rate. A call reserves the next free
time and waits for it in its worker, so all calls of the fleet begin in order and evenly spaced.
"""

from __future__ import annotations

import msgspec

__all__ = ["BURST_S", "MAX_AHEAD_S", "MAX_BLOCK_S", "LimitState", "Rates", "Reservation"]

# The unused rate of this many idle seconds may be used at once: providers count by the minute.
BURST_S = 1.0
# No reservation is further ahead: a branch that stops while it waits leaves its time unused.
MAX_AHEAD_S = 10.0
# If a provider asks for a longer pause, it is asked again after this one: its limit may have risen.
MAX_BLOCK_S = 120.0

_MINUTE_S = 60.0

_JSON_NAMES = {
    "requests_ahead_s": "requests_until",
    "tokens_ahead_s": "tokens_until",
    "blocked_s": "blocked_until",
}


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """The rate limits of a model: see RateSpec."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None

    @property
    def is_limited(self) -> bool:
        """Whether there is any limit."""
        return self.requests_per_minute is not None or self.tokens_per_minute is not None

    def request_s(self) -> float:
        """Return the seconds of the limit that a request uses; 0 without a limit."""
        return _MINUTE_S / self.requests_per_minute if self.requests_per_minute else 0.0

    def tokens_s(self, tokens: int) -> float:
        """Return the seconds of the limit that ``tokens`` tokens use; 0 without a limit."""
        return tokens * _MINUTE_S / self.tokens_per_minute if self.tokens_per_minute else 0.0


class LimitState(msgspec.Struct, frozen=True, kw_only=True, rename=_JSON_NAMES.get):
    """How far a model's limits are used, for reports. In JSON, the first three end in ``_until``.

    Attributes:
        requests_ahead_s: Seconds from now for which the granted requests use up the limit.
        tokens_ahead_s: Seconds from now for which their tokens use up the limit.
        blocked_s: Seconds until a call may begin: the provider asked for a pause, or fails.
        down_s: Seconds since the model began to fail for all callers; None if it does not.
    """

    requests_ahead_s: float = 0.0
    tokens_ahead_s: float = 0.0
    blocked_s: float = 0.0
    down_s: float | None = None


class Reservation(msgspec.Struct, frozen=True, kw_only=True):
    """The time at which a call may begin.

    Attributes:
        wait_s: Seconds until then.
        is_taken: Whether that time is reserved for the call. If not, it is too far ahead: ask
            again after ``wait_s``.
    """

    wait_s: float
    is_taken: bool
