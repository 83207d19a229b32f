"""Checks the usage that a provider reports for a call."""

from __future__ import annotations

import math
from typing import Any

from fanout.core.records import ErrorKind, Usage

__all__ = ["believable", "billed", "cost_usd", "token_count"]

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
_NOTHING = Usage(calls=1, input_tokens=0, output_tokens=0, cost_usd=0.0)
_UNKNOWN = Usage(calls=1)


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
    inputs, outputs = token_count(usage.input_tokens), token_count(usage.output_tokens)
    cost = cost_usd(usage.cost_usd)
    is_sound = inputs == usage.input_tokens and outputs == usage.output_tokens
    if is_sound and cost == usage.cost_usd and usage.calls == 1:
        return usage
    return Usage(calls=1, input_tokens=inputs, output_tokens=outputs, cost_usd=cost)


def billed(kind: ErrorKind | None, reported: Usage | None) -> Usage:
    """Return the usage of a call from its error kind and the usage that its provider reported.

    The reported usage counts. Without it, a refused call consumed nothing, and the usage of an
    abandoned call, such as one that timed out, is unknown.
    """
    if reported is not None:
        return believable(reported)
    return _NOTHING if kind in _UNBILLED else _UNKNOWN
