"""Checks the usage that a provider reports for a call."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from msgspec import structs

from fanout.core.records import NO_CALL, QUANTITIES, ErrorKind, Usage
from fanout.policy.pricing import priced

if TYPE_CHECKING:
    from fanout.core.lanes import Lane
    from fanout.policy.pricing import Price

__all__ = [
    "NO_USAGE",
    "UNKNOWN_USAGE",
    "believable",
    "billed",
    "billed_at",
    "cost_usd",
    "token_count",
]

# Values above these are nonsense.
_MAX_TOKENS = 1_000_000_000
_MAX_USD = 1_000_000.0

# The provider refused, failed, or was not reached, so it bills nothing.
_UNBILLED = frozenset(
    {
        ErrorKind.RATE_LIMITED,
        ErrorKind.CONNECTION,
        ErrorKind.SERVER_ERROR,
        ErrorKind.AUTH,
        ErrorKind.BUDGET,
        ErrorKind.BAD_REQUEST,
        ErrorKind.CONTEXT_LENGTH,
        ErrorKind.CONTENT_FILTER,
    }
)
# The types of parts that are 0 or unknown.
_NO_PARTS = frozenset({int, type(None)})
# A call that consumed nothing.
NO_USAGE = structs.replace(NO_CALL, calls=1)
# A call of which nothing is known.
UNKNOWN_USAGE = Usage(calls=1)
_TOKENS = QUANTITIES[:-1]
_PARTS = {
    "cached_input_tokens": "input_tokens",
    "cache_write_tokens": "input_tokens",
    "reasoning_tokens": "output_tokens",
}


def token_count(value: Any) -> int | None:
    """Return a number of tokens; None for any other or impossible value."""
    return value if type(value) is int and 0 <= value <= _MAX_TOKENS else None


def cost_usd(value: Any) -> float | None:
    """Return US dollars; None for any other or impossible value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and 0 <= value <= _MAX_USD else None


def believable(usage: Usage) -> Usage:
    """Return a call's usage with impossible values replaced by None."""
    if usage.calls == 1 and not usage.at_least and _is_sound(usage):
        return usage
    sound: dict[str, Any] = {name: token_count(getattr(usage, name)) for name in _TOKENS}
    sound["cost_usd"] = cost_usd(usage.cost_usd)
    _keep_parts_within(sound)
    return Usage(calls=1, **sound)


def _is_sound(usage: Usage) -> bool:
    """Return whether all values are possible, as nearly always."""
    prompt, answer, cost = usage.input_tokens, usage.output_tokens, usage.cost_usd
    cached, written = usage.cached_input_tokens, usage.cache_write_tokens
    reasoning = usage.reasoning_tokens
    if not (cost is None or (type(cost) is float and 0 <= cost <= _MAX_USD)):
        return False
    if type(prompt) is int and type(answer) is int and not (cached or written or reasoning):
        # In half the time of what follows, which holds for these, too.
        return (
            0 <= prompt <= _MAX_TOKENS
            and 0 <= answer <= _MAX_TOKENS
            and _NO_PARTS.issuperset((type(cached), type(written), type(reasoning)))
        )
    for tokens in (prompt, cached, written, answer, reasoning):
        if tokens is not None and not (type(tokens) is int and 0 <= tokens <= _MAX_TOKENS):
            return False
    return (prompt is None or ((cached or 0) <= prompt and (written or 0) <= prompt)) and (
        answer is None or (reasoning or 0) <= answer
    )


def _keep_parts_within(sound: dict[str, Any]) -> None:
    """Make a part that is greater than its whole unknown."""
    for part, whole in _PARTS.items():
        if (sound[part] or 0) > (sound[whole] or 0) and sound[whole] is not None:
            sound[part] = None


def billed(kind: ErrorKind | None, reported: Usage | None) -> Usage:
    """Return the usage of a call from its error kind and the usage that its provider reported.

    The reported usage counts, and is believable. Without it, a refused call consumed nothing, and
    the usage of an abandoned call, such as one that timed out, is unknown. An adapter reports
    UNKNOWN_USAGE for a success that it cannot read: the provider may bill it.
    """
    if reported is not None:
        return reported
    return NO_USAGE if kind in _UNBILLED else UNKNOWN_USAGE


def billed_at(
    price: Price | None, kind: ErrorKind | None, reported: Usage | None, lane: Lane
) -> Usage:
    """Return the usage of a call as ``billed`` does, with its cost at a price in a lane."""
    return priced(billed(kind, reported), price, lane)
