"""The values of the rate limiter, which one fleet shares. A script on the server does the arithmetic.

A limit is told by the job (RateSpec), or learnt from the headers of a provider's replies.

It is the generic cell rate algorithm of the ATM Forum's traffic management. For each model, the
server keeps the time until which the granted calls use up the rate. A call reserves the next free
time and waits for it in its worker, so all calls of the fleet begin in order and evenly spaced.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from fanout.core.units import plural

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "BURST_S",
    "MAX_AHEAD_S",
    "MAX_BLOCK_S",
    "CallTokens",
    "LearntLimits",
    "LimitState",
    "Rates",
    "Reservation",
    "SeenLimit",
    "SeenLimits",
    "starts_s",
]

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


class SeenLimit(msgspec.Struct, frozen=True, kw_only=True):
    """One rate limit, as the headers of a reply tell it.

    Attributes:
        limit: Requests or tokens in a period; None if it is not told.
        remaining: What is left of it at that moment, or None.
        reset_s: Seconds until all of it is there again, or None.
        period_s: The period in seconds where the header's name says it; None if nothing does, as
            with OpenAI, whose limits are mostly those of a minute.
    """

    limit: float | None = None
    remaining: float | None = None
    reset_s: float | None = None
    period_s: float | None = None


class SeenLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The rate limits in the headers of a reply; None for what they do not tell.

    Attributes:
        requests: Requests.
        tokens: Tokens of prompts and answers together.
        input_tokens: Tokens of prompts.
        output_tokens: Tokens of answers.
    """

    requests: SeenLimit | None = None
    tokens: SeenLimit | None = None
    input_tokens: SeenLimit | None = None
    output_tokens: SeenLimit | None = None


class CallTokens(msgspec.Struct, frozen=True):
    """The tokens of calls, in prompts and in answers; as a correction they may be negative."""

    input_tokens: float = 0
    output_tokens: float = 0


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """The rate limits of a model: see RateSpec. Providers also limit prompts and answers apart."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    input_tokens_per_minute: float | None = None
    output_tokens_per_minute: float | None = None

    @property
    def is_limited(self) -> bool:
        """Whether there is any limit."""
        return (
            self.requests_per_minute is not None
            or self.tokens_per_minute is not None
            or self.input_tokens_per_minute is not None
            or self.output_tokens_per_minute is not None
        )

    @property
    def counts_tokens(self) -> bool:
        """Whether there is a limit of tokens."""
        return (
            self.tokens_per_minute is not None
            or self.input_tokens_per_minute is not None
            or self.output_tokens_per_minute is not None
        )

    def request_s(self) -> float:
        """Return the seconds of the limit that a request uses; 0 without a limit."""
        return _seconds(1, self.requests_per_minute)

    def tokens_s(self, tokens: float) -> float:
        """Return the seconds of the limit that ``tokens`` tokens use; 0 without a limit."""
        return _seconds(tokens, self.tokens_per_minute)

    def costs_s(self, tokens: CallTokens, *, calls: int = 1) -> tuple[float, float, float, float]:
        """Return the seconds of each limit that calls use: requests, tokens, input, output."""
        return (
            calls * self.request_s(),
            self.tokens_s(tokens.input_tokens + tokens.output_tokens),
            _seconds(tokens.input_tokens, self.input_tokens_per_minute),
            _seconds(tokens.output_tokens, self.output_tokens_per_minute),
        )

    def lower(self, other: Rates) -> Rates:
        """Return the lower of both for each limit."""
        return Rates(
            **{
                name: min(known)
                for name in self.__struct_fields__
                if (known := [r for r in (getattr(self, name), getattr(other, name)) if r])
            }
        )


def _seconds(number: float, per_minute: float | None) -> float:
    return number * _MINUTE_S / per_minute if per_minute else 0.0


class LearntLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a fleet has learnt of a model's limits.

    Attributes:
        rates: The limits.
        is_tight: Whether calls must keep to them: so little is left, or one was refused.
    """

    rates: Rates
    is_tight: bool = False


class LimitState(msgspec.Struct, frozen=True, kw_only=True, rename=_JSON_NAMES.get):
    """How far a model's limits are used, for reports. In JSON, the first three end in ``_until``.

    Attributes:
        requests_ahead_s: Seconds from now for which the granted requests use up the limit.
        tokens_ahead_s: Seconds from now for which their tokens use up the limit that is used most.
        blocked_s: Seconds until a call may begin: the provider asked for a pause, or fails.
        down_s: Seconds since the model began to fail for all callers; None if it does not.
        learnt: The limits that the provider's headers tell; None if they tell none.
        calls_at_once: The calls that the fleet has in flight at most, as the provider refused or
            slowed down with more; None for any number.
        is_tight: Whether calls must keep to what was learnt.
    """

    requests_ahead_s: float = 0.0
    tokens_ahead_s: float = 0.0
    blocked_s: float = 0.0
    down_s: float | None = None
    learnt: Rates | None = None
    calls_at_once: int | None = None
    is_tight: bool = False

    @property
    def is_waited_for(self) -> bool:
        """Whether calls wait for a learnt limit now."""
        ahead_s = max(self.requests_ahead_s, self.tokens_ahead_s)
        return self.learnt is not None and self.is_tight and ahead_s > BURST_S

    @property
    def words(self) -> str:
        """The learnt limits for people; empty if there are none."""
        rates = {} if self.learnt is None else msgspec.structs.asdict(self.learnt)
        told = [_rate_words(name, rate) for name, rate in rates.items() if rate is not None]
        if self.calls_at_once is not None:
            told.append(plural(self.calls_at_once, "call at once", "calls at once"))
        return ", ".join(told)

    def to_dict(self) -> dict[str, Any]:
        """Return what was learnt, and whether calls wait for it, as JSON values."""
        rates = {} if self.learnt is None else msgspec.structs.asdict(self.learnt)
        told = {name: rate for name, rate in rates.items() if rate is not None}
        at_once = {} if self.calls_at_once is None else {"calls_at_once": self.calls_at_once}
        return {**told, **at_once, "is_waited_for": self.is_waited_for}


def _rate_words(name: str, rate: float) -> str:
    what = name.removesuffix("_per_minute").replace("_", " ")
    shown = f"{rate:,.0f}" if rate >= 1 or not rate else f"{rate:.2g}"
    return f"{shown} {what.removesuffix('s') if shown == '1' else what} a minute"


class Reservation(msgspec.Struct, frozen=True, kw_only=True):
    """The times at which calls may begin.

    Attributes:
        wait_s: Seconds until the first of them.
        is_taken: Whether these times are reserved for the calls. If not, they are too far ahead:
            ask again after ``wait_s``.
        waits_s: Seconds until each call, if they are reserved.
    """

    wait_s: float
    is_taken: bool
    waits_s: tuple[float, ...] = ()


def starts_s(
    first_s: float, ahead_s: Sequence[float], costs_s: Sequence[float], *, calls: int
) -> tuple[float, ...]:
    """Return the seconds from now until each of some calls that were reserved together may begin.

    Args:
        first_s: Seconds until the first of them.
        ahead_s: Seconds from now until which each limit is used up with all of them.
        costs_s: Seconds of each limit that all of them use.
        calls: How many they are.
    """
    used = [(ahead, cost / calls) for ahead, cost in zip(ahead_s, costs_s, strict=True) if cost > 0]
    return tuple(
        max([first_s, *(ahead - (calls - n) * each - BURST_S for ahead, each in used)])
        for n in range(calls)
    )
