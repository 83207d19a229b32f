"""Numbers as people read them, with their units; and what the kinds of error mean."""

from __future__ import annotations

import math
import time

from fanout.runs import ErrorKind

__all__ = ["MEANINGS", "clock_text", "count_text", "dollars", "duration", "plural", "share", "unit"]

_NARROW, _SPACE = "\N{NARROW NO-BREAK SPACE}", "\N{NO-BREAK SPACE}"
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86_400
_MS = 0.001
_LEAST_PERCENT = 0.1
# From here on, it would be said to be 1,000 ms.
_NEARLY_1_S = 0.9995
# Seconds below this are shown with two digits behind the first.
_FEW_S = 10

MEANINGS = {
    ErrorKind.RATE_LIMITED: "the provider asked to slow down",
    ErrorKind.TIMEOUT: "no complete answer in time",
    ErrorKind.CONNECTION: "the provider could not be reached",
    ErrorKind.SERVER_ERROR: "the provider failed",
    ErrorKind.CONTEXT_LENGTH: "prompt and answer do not fit the context window",
    ErrorKind.CONTENT_FILTER: "the provider refused the content",
    ErrorKind.TRUNCATED: "the answer was cut at its limit of tokens",
    ErrorKind.INVALID_OUTPUT: "the answer is empty, or not of the form asked for",
    ErrorKind.BAD_REQUEST: "the document or the request cannot be used as it is",
    ErrorKind.AUTH: "the provider refused the credentials",
    ErrorKind.BUDGET: "there is no money left",
    ErrorKind.CANCELLED: "the run was stopped before or during the call",
    ErrorKind.TIME_LIMIT: "the task exceeded its hard time limit",
    ErrorKind.WORKER_LOST: "the worker process died",
    ErrorKind.POISONED: "the branch killed its worker again and again",
    ErrorKind.EXPIRED: "the run's deadline passed",
    ErrorKind.LOST: "no trace of the branch was left",
    ErrorKind.INTERNAL: "a fault in fanout or in the caller's own function",
}


def unit(number: str, name: str) -> str:
    """Return a number and its unit, which no line break parts."""
    return f"{number}{_NARROW}{name}"


def count_text(number: float | None) -> str:
    """Return a count with thousands apart; an unknown one is said to be unknown."""
    return "unknown" if number is None else f"{number:,.0f}"


def plural(number: int, one: str, many: str) -> str:
    """Return a count and the word that fits it."""
    return f"{number:,} {one if number == 1 else many}"


def share(part: int, whole: int) -> str:
    """Return a share in percent; all is 100 % and none is 0 %, and nothing else is."""
    if not whole:
        return "none"
    if part in {0, whole}:
        return unit("100" if part else "0", "%")
    percent = 100 * part / whole
    if percent < _LEAST_PERCENT:
        return f"less than {unit('0.1', '%')}"
    if percent > 100 - _LEAST_PERCENT:
        return f"more than {unit('99.9', '%')}"
    return unit(f"{percent:.1f}", "%")


def dollars(cost_usd: float | None) -> str:
    """Return US dollars, with as many digits as a small sum needs."""
    if cost_usd is None:
        return "unknown"
    return f"${cost_usd:,.2f}" if cost_usd >= 1 or not cost_usd else f"${cost_usd:.4f}"


def duration(seconds: float) -> str:
    """Return a duration in the units that fit it, to about three digits."""
    if seconds < _NEARLY_1_S:
        return unit(_digits(seconds / _MS), "ms")
    if seconds < _MINUTE_S:
        return unit(_digits(seconds), "s")
    whole = round(seconds)
    if whole < _HOUR_S:
        return _two(*divmod(whole, _MINUTE_S), "min", "s")
    if whole < _DAY_S:
        return _two(*divmod(whole // _MINUTE_S, 60), "h", "min")
    return _two(*divmod(whole // _HOUR_S, 24), "d", "h")


def _digits(number: float) -> str:
    if not number:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(number)) if number < _FEW_S else 1)
    text = f"{number:.{min(decimals, 3)}f}" if number < 10 * _FEW_S else f"{number:.0f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _two(large: int, small: int, large_unit: str, small_unit: str) -> str:
    first = unit(str(large), large_unit)
    return f"{first}{_SPACE}{unit(str(small), small_unit)}" if small else first


def clock_text(epoch_s: float) -> str:
    """Return a moment, in UTC: who reads the page may be anywhere."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(epoch_s))
