"""What all providers that speak HTTP share: what an error reply means."""

from __future__ import annotations

import math
import re
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from fanout.core import redaction as known_secrets
from fanout.core.errors import LLMError
from fanout.llm.error_kinds import Refusal, judge
from fanout.llm.reply_bodies import said_in

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fanout.core.records import Usage
    from fanout.llm.http_client import HttpReply
    from fanout.llm.reply_bodies import Said

__all__ = ["http_error", "redacted", "refused", "refused_in_success", "retry_after", "status_error"]

_MAX_MESSAGE = 300
_OK = 200
_ERROR_STATUSES = range(400, 600)
# What is looked at for what it means: a page, or a prompt that is sent back, may be long.
_LOOKED_AT = 4_000
# In words: "Please try again in 7m12.5s", "Please retry in 37.8s", "in 20ms".
_WAIT = re.compile(
    r"(?:try again|retry) (?:in|after) (?:(\d{1,4})h)?(?:(\d{1,5})m(?!s))?"
    r"(?:(\d{1,6}(?:\.\d{1,9})?) ?(ms|s))?",
    re.IGNORECASE,
)


def http_error(
    *,
    status: int,
    message: str,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
    secrets: tuple[str, ...] = (),
    usage: Usage | None = None,
    param: str = "",
    is_page: bool = False,
    wait_s: float | None = None,
) -> LLMError:
    """Return the LLMError of an HTTP error reply.

    Args:
        status: The HTTP status; 200 where a reply of success holds an error.
        message: What the provider says.
        code: Its machine-readable codes, separated by spaces, the most specific first; or None.
        headers: The reply's headers.
        secrets: Keys that the message must not repeat.
        usage: What the reply says that the call consumed, or None.
        param: The field of the request that it speaks of.
        is_page: Whether it is a web page.
        wait_s: Seconds that its body asks to wait, or None.
    """
    looked_at = " ".join(message[:_LOOKED_AT].split())
    asked_s = retry_after(headers or {})
    if asked_s is None:
        asked_s = wait_s if wait_s is not None else _wait_in(looked_at)
    verdict = judge(
        Refusal(
            status=status,
            message=looked_at,
            codes=tuple((code or "").lower().split()),
            param=param,
            is_page=is_page,
            asks_to_wait=asked_s is not None,
        )
    )
    begin, hint = f"HTTP {status}: ", f"; {verdict.hint}" if verdict.hint else ""
    # The hint is not what a long message costs.
    words = redacted(message, secrets)[: _MAX_MESSAGE - len(begin) - len(hint)]
    return LLMError(
        verdict.kind,
        f"{begin}{words}{hint}",
        retry_after_s=asked_s,
        status=status,
        usage=usage,
        stop_after=verdict.stop_after,
    )


def refused(
    status: int,
    told: Said,
    *,
    headers: Mapping[str, str],
    secrets: tuple[str, ...] = (),
    usage: Usage | None = None,
) -> LLMError:
    """Return the LLMError of what an error reply says."""
    return http_error(
        status=status,
        message=told.message or f"Error code: {status}",
        code=" ".join(told.codes),
        headers=headers,
        secrets=secrets,
        param=told.param,
        is_page=told.is_page,
        wait_s=told.wait_s,
        usage=usage,
    )


def status_error(reply: HttpReply, *, key: str, usage: Usage | None = None) -> LLMError:
    """Return the LLMError of an error reply.

    Args:
        reply: The reply.
        key: The key that the message must not repeat.
        usage: What the reply says that the call consumed, or None.
    """
    return refused(
        reply.status, reply.problem(), headers=reply.headers, secrets=(key,), usage=usage
    )


def refused_in_success(
    told: Any,
    *,
    headers: Mapping[str, str],
    secrets: tuple[str, ...] = (),
    usage: Usage | None = None,
) -> LLMError | None:
    """Return the LLMError that the JSON of a reply of success holds, or None where there is none.

    Gateways that have begun to answer have no other place for it. A status may be among its codes.
    """
    found = said_in(told)
    if not found.message and not (isinstance(told, dict) and told.get("error")):
        return None
    statuses = (int(c) for c in found.codes if len(c) == 3 and c.isascii() and c.isdecimal())  # noqa: PLR2004 - digits
    status = next((status for status in statuses if status in _ERROR_STATUSES), _OK)
    return refused(status, found, headers=headers, secrets=secrets, usage=usage)


def _wait_in(message: str) -> float | None:
    found = _WAIT.search(message)
    if found is None or not any(found.groups()):
        return None
    hours, minutes, rest, unit = found.groups(default="0")
    seconds = float(rest) / 1000 if unit == "ms" else float(rest)
    return 3600 * int(hours) + 60 * int(minutes) + seconds


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return how many seconds a reply asks to wait, or None.

    Source: RFC 9110, section 10.2.3 (seconds or a date), and ``retry-after-ms``, which OpenAI and
    Azure send.
    """
    milliseconds = _seconds(headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return milliseconds / 1000
    given = headers.get("retry-after", "")
    seconds = _seconds(given)
    if seconds is not None:
        return seconds
    try:
        return max(0.0, parsedate_to_datetime(given).timestamp() - time.time())
    except (ValueError, OverflowError, OSError):
        return None


def _seconds(given: str) -> float | None:
    """Return a number that is one, and not less than 0; None where it is none."""
    try:
        seconds = float(given)
    except ValueError:
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def redacted(message: str, secrets: tuple[str, ...] = ()) -> str:
    """Return a provider's message, short and without keys."""
    return known_secrets.redacted(" ".join(message.split()), secrets)[:_MAX_MESSAGE]
