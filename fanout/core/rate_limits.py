"""One rate limit for a whole fleet: when a call may begin. The server does the arithmetic.

The generic cell rate algorithm, as of the ATM Forum's traffic management: of each model the time is
kept at which what was let through would be paid for at its rate. A call takes the next free time
and waits for it in the worker, so that calls begin in the order in which they came, evenly spaced,
wherever they are made.
"""

from __future__ import annotations

import msgspec

__all__ = ["BURST_S", "MAX_AHEAD_S", "MAX_BLOCK_S", "LimitState", "Rates", "Slot"]

# What an idle second has left over may be used at once: providers count by the minute.
BURST_S = 1.0
# No slot is given further ahead: who is stopped while it waits would leave it unused.
MAX_AHEAD_S = 10.0
# A provider that asks for more is asked again sooner: its limit may have been raised meanwhile.
MAX_BLOCK_S = 120.0

_MINUTE_S = 60.0


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """What may be asked of a model.

    Attributes:
        requests_per_minute: Calls, or None for no limit.
        tokens_per_minute: Tokens of prompts and answers, or None for no limit.
    """

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None

    @property
    def is_limited(self) -> bool:
        """Whether there is any limit."""
        return self.requests_per_minute is not None or self.tokens_per_minute is not None

    def request_s(self) -> float:
        """Return the seconds that a request takes up; 0 where they are not limited."""
        return _MINUTE_S / self.requests_per_minute if self.requests_per_minute else 0.0

    def tokens_s(self, tokens: int) -> float:
        """Return the seconds that so many tokens take up; 0 where they are not limited."""
        return tokens * _MINUTE_S / self.tokens_per_minute if self.tokens_per_minute else 0.0


class LimitState(msgspec.Struct, frozen=True, kw_only=True):
    """How far a model's limits are used, in seconds of one clock.

    Attributes:
        requests_until: When the requests let through are paid for.
        tokens_until: When their tokens are.
        blocked_until: Before that nothing is let through: the provider asked for a pause, or fails.
        down_s: Seconds since which the model fails for everybody; None where it does not. Only
            where this is told, not where it is reckoned with: see fanout.policy.outages.
    """

    requests_until: float = 0.0
    tokens_until: float = 0.0
    blocked_until: float = 0.0
    down_s: float | None = None


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """When a call may begin.

    Attributes:
        wait_s: Seconds until then.
        is_taken: Whether that time is reserved; else it is too far ahead: ask again after
            ``wait_s``.
    """

    wait_s: float
    is_taken: bool
