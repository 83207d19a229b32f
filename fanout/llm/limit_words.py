"""Reads the rate limits that a refusal names in its words, or in the quotas that it lists.

Sources: refusals of OpenAI and Groq ("on tokens per min (TPM): Limit 30000, Used 29937, Requested 385"),
of OpenAI before 2024 ("on requests per min. Limit: 3 / min."), of Anthropic ("the rate limit for your
organization of 20,000 input tokens per minute"), and Gemini's ``QuotaFailure``, whose quotas have ids such
as ``GenerateRequestsPerMinutePerProjectPerModel-FreeTier``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fanout.core.rate_limits import SeenLimit, SeenLimits

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["joined", "limits_in"]

_MINUTE_S = 60.0
_MOST = 1e12
_RESOURCES = {
    "requests": "requests",
    "tokens": "tokens",
    "input tokens": "input_tokens",
    "output tokens": "output_tokens",
}
_UNIT = r"(?P<unit>(?:input |output )?tokens|requests)"
_NUMBER = r"(?P<limit>(?:\d[\d,]{0,13})?\d)"
_WORDED = (
    # OpenAI, Groq, and those that imitate them.
    re.compile(
        rf"\b{_UNIT} per min(?:ute)?(?: \((?:[TR]PM|[IO]TPM)\))?[.:] limit:? {_NUMBER}"
        r"(?: / min)?(?:, used (?P<used>(?:\d[\d,]{0,13})?\d))?",
        re.IGNORECASE,
    ),
    # Anthropic.
    re.compile(rf"\brate limit\b[^.]{{0,120}}? of {_NUMBER} {_UNIT} per minute\b", re.IGNORECASE),
)
_QUOTED = re.compile(
    r"""["']quotaId["']\s*:\s*["'](?P<id>[\w-]{1,100})["'](?:[^{}]|\{[^{}]*\}){0,300}?"""
    r"""["']quotaValue["']\s*:\s*["'](?P<value>\d{1,15})["']"""
)
_PER_MINUTE = re.compile(r"per_?minute", re.IGNORECASE)
_KINDS = (
    (re.compile("input_?token", re.IGNORECASE), "input_tokens"),
    (re.compile("output_?token", re.IGNORECASE), "output_tokens"),
    (re.compile("token", re.IGNORECASE), "tokens"),
    (re.compile("request", re.IGNORECASE), "requests"),
)


def limits_in(message: str, quotas: Iterable[tuple[str, str]] = ()) -> SeenLimits | None:
    """Return the limits of a minute that a refusal names; None if it names none.

    Args:
        message: Its message, on one line.
        quotas: The ids and values of quotas in its details.
    """
    found: dict[str, SeenLimit] = {}
    for pattern in _WORDED:
        for match in pattern.finditer(message):
            limit = _limit(match["limit"], match.groupdict().get("used"))
            found.setdefault(_RESOURCES[match["unit"].lower()], limit) if limit else None
    quoted = ((match["id"], match["value"]) for match in _QUOTED.finditer(message))
    for name, value in (*quotas, *quoted):
        resource, limit = _resource_of(name), _limit(value)
        if resource is not None and limit is not None:
            found.setdefault(resource, limit)
    return SeenLimits(**found) if found else None


def _limit(text: str, used: str | None = None) -> SeenLimit | None:
    number = _number(text)
    if not 1 <= number <= _MOST:
        # A quota of 0 says that the key may not use the model.
        return None
    if used is None:
        return SeenLimit(limit=number, period_s=_MINUTE_S)
    taken = min(number, _number(used))
    return SeenLimit(
        limit=number,
        remaining=number - taken,
        reset_s=_MINUTE_S * taken / number,
        period_s=_MINUTE_S,
    )


def _number(text: str) -> float:
    digits = text.replace(",", "")
    return float(digits) if digits.isascii() and digits.isdecimal() else 0.0


def _resource_of(quota_id: str) -> str | None:
    if not _PER_MINUTE.search(quota_id):
        return None
    return next((name for kind, name in _KINDS if kind.search(quota_id)), None)


def joined(told: SeenLimits | None, named: SeenLimits | None) -> SeenLimits | None:
    """Return what headers tell, and for the rest what words name."""
    if told is None or named is None:
        return told or named
    return SeenLimits(
        **{
            name: getattr(told, name) or getattr(named, name)
            for name in SeenLimits.__struct_fields__
        }
    )
