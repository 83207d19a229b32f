"""Reads the rate limits in the headers of a provider's replies.

Sources: the pages on rate limits of OpenAI, Azure and Groq (``x-ratelimit-limit-requests``), Anthropic
(``anthropic-ratelimit-requests-limit``), Mistral and Cerebras (``x-ratelimit-limit-tokens-minute``),
Fireworks (``x-ratelimit-limit-tokens-prompt``) and OpenRouter (``x-ratelimit-limit``, with the end of a
window in milliseconds since the epoch).
"""

from __future__ import annotations

import math
import re
import time
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from fanout.core.rate_limits import SeenLimit, SeenLimits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["LimitHeaders", "duration_s"]

_REQUESTS = {"requests": "requests", "request": "requests", "req": "requests"}
_INPUT = dict.fromkeys(("input-tokens", "prompt-tokens", "tokens-prompt"), "input_tokens")
_OUTPUT = dict.fromkeys(
    ("output-tokens", "completion-tokens", "tokens-generated", "generated-tokens"), "output_tokens"
)
_RESOURCES = {**_REQUESTS, "tokens": "tokens", "token": "tokens", **_INPUT, **_OUTPUT}
_PERIODS_S = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400, "month": 30 * 86_400}

_PARTS = "limit|remaining|reset"
_ANTHROPIC = re.compile(rf"anthropic-ratelimit-(?P<resource>[a-z-]+?)-(?P<part>{_PARTS})")
_OPENAI = re.compile(
    rf"x-ratelimit-(?P<part>{_PARTS})-(?P<resource>[a-z-]+?)"
    rf"(?:-(?P<number>\d{{1,4}}))?(?:-(?P<period>{'|'.join(_PERIODS_S)}))?"
)
_WINDOW = "window"
_BARE = re.compile(rf"(?:x-)?ratelimit-(?P<part>{_PARTS})")
# litellm puts this before the headers of a provider.
_PREFIX = "llm_provider-"

# A duration: "1h2m3.5s", "6m0s", "20ms".
_DURATION = re.compile(
    r"(?:(\d{1,5})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m(?!s))?"
    r"(?:(\d{1,9}(?:\.\d{1,9})?)s)?(?:(\d{1,12}(?:\.\d{1,9})?)ms)?"
)
_LONGEST_TEXT = 40
_MOST = 1e12
# Numbers above these are times since the epoch, in milliseconds and in seconds.
_EPOCH_MS, _EPOCH_S = 1e11, 1e9
_LONGEST_RESET_S = 62 * 86_400.0
# Pacing by the limits of longer periods would waste the time until they are used up.
_LONGEST_PERIOD_S = 600.0
_MINUTE_S = 60.0
_SECONDS_AT_MOST = 1.0
# Replies without any such header until the next one that is searched.
_SKIPPED = 100


class _Field(msgspec.Struct, frozen=True):
    """A header with one number of a limit; ``period_s`` is 0 where its name does not tell one."""

    header: str
    resource: str
    part: str
    period_s: float = 0.0


class LimitHeaders:
    """Reads the rate limits of one server, cheaply: it searches the headers of few replies."""

    def __init__(self) -> None:
        self._fields: Sequence[_Field] = ()
        self._skips = 0

    def read(self, headers: Mapping[str, str], *, is_error: bool = False) -> SeenLimits | None:
        """Return the limits in the headers of a reply, or None."""
        if not self._fields:
            if self._skips and not is_error:
                self._skips -= 1
                return None
            self._skips = _SKIPPED
            self._fields = _fields_in(headers)
        if not self._fields:
            return None
        seen = _seen(self._fields, headers)
        if seen is None:
            self._fields = ()
        return seen


def _fields_in(headers: Mapping[str, str]) -> list[_Field]:
    found = [_field(header) for header in headers if "ratelimit" in header.lower()]
    return [field for field in found if field is not None]


def _field(header: str) -> _Field | None:
    name = header.lower().removeprefix(_PREFIX)
    match = _ANTHROPIC.fullmatch(name)
    if match is not None:
        # Anthropic's limits are those of a minute.
        resource = _RESOURCES.get(match["resource"])
        return _Field(header, resource, match["part"], _MINUTE_S) if resource else None
    match = _OPENAI.fullmatch(name)
    if match is not None and (resource := _RESOURCES.get(match["resource"])):
        period_s = _PERIODS_S.get(match["period"] or "", 0) * int(match["number"] or 1)
        return _Field(header, resource, match["part"], period_s)
    match = _BARE.fullmatch(name)
    return None if match is None else _Field(header, _WINDOW, match["part"])


def _seen(fields: Sequence[_Field], headers: Mapping[str, str]) -> SeenLimits | None:
    found: dict[tuple[str, float], dict[str, float]] = {}
    for field in fields:
        text = headers.get(field.header)
        value = None if text is None else _value(field.part, str(text))
        if value is not None:
            found.setdefault((field.resource, field.period_s), {})[field.part] = value
    limits: dict[str, SeenLimit] = {}
    for (name, period_s), parts in found.items():
        is_window = name == _WINDOW
        limit = _of_window(parts) if is_window else _limit(parts, period_s)
        resource = "requests" if is_window else name
        other = limits.get(resource)
        if limit is not None and (other is None or _tightness(limit) < _tightness(other)):
            limits[resource] = limit
    return SeenLimits(**limits) if limits else None


def _of_window(parts: Mapping[str, float]) -> SeenLimit | None:
    """Return a limit whose name tells neither a unit nor a period; None unless it is of a minute.

    Some servers mean a second by it, others a day: only the end of its window tells.
    """
    ends_s = parts.get("reset", 0.0)
    is_known = "limit" in parts and _SECONDS_AT_MOST < ends_s <= _MINUTE_S
    return _limit(parts, _MINUTE_S) if is_known else None


def _limit(parts: Mapping[str, float], period_s: float) -> SeenLimit:
    return SeenLimit(
        limit=parts.get("limit"),
        remaining=parts.get("remaining"),
        reset_s=parts.get("reset"),
        period_s=period_s or None,
    )


def _tightness(limit: SeenLimit) -> tuple[bool, float]:
    """Order the limits of several periods: short periods first, then the lowest rate."""
    period_s = limit.period_s or _MINUTE_S
    rate = math.inf if limit.limit is None else limit.limit / period_s
    return period_s > _LONGEST_PERIOD_S, rate


def _value(part: str, text: str) -> float | None:
    # Digits of other scripts are no number of a header.
    if len(text) > _LONGEST_TEXT or not text.isascii():
        return None
    if part == "reset":
        return duration_s(text)
    number = _number(text)
    if number is None or number > _MOST or (part == "limit" and number < 1):
        return None
    return max(0.0, number)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def duration_s(text: str) -> float | None:
    """Return the seconds until a limit is there again; None for any text that does not tell.

    It is a number of seconds, a duration such as ``6m0s`` or ``20ms``, a time of RFC 3339, or a number
    of seconds or milliseconds since the epoch.
    """
    text = text.strip()
    if not text.isascii():
        return None
    number = _number(text)
    if number is None:
        number = _written_out(text)
    elif number >= _EPOCH_MS:
        number = number / 1_000 - time.time()
    elif number >= _EPOCH_S:
        number -= time.time()
    if number is None or number > _LONGEST_RESET_S:
        return None
    return max(0.0, number)


def _written_out(text: str) -> float | None:
    match = _DURATION.fullmatch(text.lower())
    if match is not None and text:
        days, hours, minutes, seconds, milliseconds = (float(part or 0) for part in match.groups())
        return 86_400 * days + 3_600 * hours + _MINUTE_S * minutes + seconds + milliseconds / 1_000
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        return None
    try:
        return moment.timestamp() - time.time()
    except (OverflowError, OSError):
        return None
