"""Formatting of numbers with their units, for terminals and reports."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fanout.core.records import Usage

__all__ = [
    "byte_size",
    "clock",
    "cost_of",
    "count_of",
    "dollars",
    "duration",
    "exact_percent",
    "known",
    "moment",
    "page_range",
    "percent",
    "plain",
    "plural",
    "share",
    "unit",
]

_NARROW, _SPACE = "\N{NARROW NO-BREAK SPACE}", "\N{NO-BREAK SPACE}"
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86_400
_MS = 0.001
_LEAST_PERCENT = 0.1
# A budget counts in billionths of a dollar.
_LEAST_USD = 1e-10
_KILO, _MEGA = 1_000, 1_000_000
# From this value on, three digits round to 1,000 ms.
_NEARLY_1_S = 0.9995
# Numbers below this have two digits behind the first.
_FEW_S = 10


def unit(number: str, name: str) -> str:
    """Return a number and its unit, with a narrow no-break space between them."""
    return f"{number}{_NARROW}{name}"


def plain(text: str) -> str:
    """Return a text with ordinary spaces in place of no-break ones, for terminals."""
    return text.replace(_NARROW, " ").replace(_SPACE, " ")


def known(count: int | None) -> str:
    """Return a count with thousands separators; ``?`` if it is unknown."""
    return "?" if count is None else f"{count:,}"


def count_of(usage: Usage, name: str) -> str:
    """Return a count of a usage; of an unknown one the known part, as ``at least 1,200``, or ``?``."""
    least = usage.at_least.get(name)
    return f"at least {least:,.0f}" if least else known(getattr(usage, name))


def cost_of(usage: Usage) -> str:
    """Return the cost of a usage; of an unknown one the known part, as ``at least $1.20``, or ``?``."""
    least = usage.at_least.get("cost_usd")
    if least:
        return f"at least {dollars(least)}"
    return "?" if usage.cost_usd is None else dollars(usage.cost_usd)


def plural(number: int, one: str, many: str) -> str:
    """Return a count and the word in the singular or plural."""
    return f"{number:,} {one if number == 1 else many}"


def share(part: int, whole: int) -> str:
    """Return a share in percent for a sentence; only all is 100%, and only none is 0%."""
    if not whole:
        return "none"
    if part in {0, whole}:
        return "100%" if part else "0%"
    parts = 100 * part / whole
    if parts < _LEAST_PERCENT:
        return f"less than {_LEAST_PERCENT}%"
    if parts > 100 - _LEAST_PERCENT:
        return f"more than {100 - _LEAST_PERCENT}%"
    return percent(part, whole)


def percent(part: int, whole: int) -> str:
    """Return a share in percent for a column, with one decimal; only all is 100.0%. Empty of nothing."""
    shown = f"{part / whole:.1%}" if whole else ""
    return "99.9%" if shown == "100.0%" and part < whole else shown


def exact_percent(part: float) -> str:
    """Return a share that a user has set, 0 to 1, in percent, with one decimal or as many as it has."""
    parts = round(100 * part, 6)
    shown = f"{parts:.1f}"
    return f"{shown}%" if float(shown) == parts else f"{parts:.9g}%"


def dollars(cost_usd: float | None, *, decimals: int | None = None) -> str:
    """Return US dollars without zeros behind the cents; tiny sums have at least two digits.

    Args:
        cost_usd: The sum; None is unknown.
        decimals: To how many it is rounded; None is two, and four for sums below one dollar.
    """
    if cost_usd is None:
        return "unknown"
    if cost_usd < _LEAST_USD:
        return f"${cost_usd:,.2f}"
    if decimals is None:
        decimals = 2 if round(cost_usd, 4) >= 1 else 4
    decimals = max(decimals, 1 - math.floor(math.log10(cost_usd)))
    whole, _, rest = f"{cost_usd:,.{decimals}f}".partition(".")
    return f"${whole}.{rest.rstrip('0'):0<2}"


def byte_size(count: float) -> str:
    """Return a number of bytes in suitable units."""
    if count >= _MEGA:
        return f"{count / _MEGA:,.1f} MB"
    return f"{count / _KILO:.0f} kB" if count >= _KILO else f"{count:.0f} bytes"


def duration(seconds: float) -> str:
    """Return a duration in suitable units, to about three digits."""
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


def clock(seconds: float) -> str:
    """Return a duration in the form of a clock: ``12.3 s``, ``4:05``, ``1:00:00``."""
    if seconds < _MINUTE_S:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), _MINUTE_S)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def moment(epoch_s: float) -> str:
    """Return a point in time, in UTC: a report is read in any time zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(epoch_s))


def page_range(pages: Sequence[int]) -> str:
    """Return the numbers of pages that follow each other as text: ``3`` or ``3-4``."""
    if not pages:
        return ""
    return str(pages[0]) if pages[0] == pages[-1] else f"{pages[0]}-{pages[-1]}"
