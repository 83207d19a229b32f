"""Converts HTTP error replies of all providers to LLMError."""

from __future__ import annotations

import math
import re
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from fanout.core import redaction as known_secrets
from fanout.core.errors import LLMError
from fanout.core.records import ErrorKind
from fanout.llm.error_kinds import judge
from fanout.llm.limit_words import limits_in
from fanout.llm.reply_bodies import error_details_in
from fanout.llm.usage import UNKNOWN_USAGE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fanout.core.records import Usage
    from fanout.llm.reply_bodies import ErrorDetails

__all__ = [
    "http_error",
    "no_answer",
    "redacted_line",
    "refused_in_success",
    "retry_after",
]

_MAX_MESSAGE = 300
_OK, _TOO_MANY = 200, 429
_ERROR_STATUSES = range(400, 600)
# A success with an error of the server's own, and the time-outs of gateways (Cloudflare: 524): the
# provider behind them may have worked, and bill it.
_MAY_BE_BILLED = frozenset({_OK, 504, 524, 598, 599})
_STATUS = re.compile(r"[0-9]{3}")
# Characters of a message that are classified: a web page or an echoed prompt may be long.
_LOOKED_AT = 4_000
# A wait in words: "Please try again in 7m12.5s", "Please retry in 37.8s", "in 20ms".
_WAIT = re.compile(
    r"(?:try again|retry) (?:in|after) (?:(\d{1,4})h)?(?:(\d{1,5})m(?!s))?"
    r"(?:(\d{1,6}(?:\.\d{1,9})?) ?(ms|s))?",
    re.IGNORECASE | re.ASCII,
)


def http_error(
    status: int,
    details: ErrorDetails,
    *,
    headers: Mapping[str, str],
    secrets: tuple[str, ...] = (),
    usage: Usage | None = None,
) -> LLMError:
    """Return the LLMError of an HTTP error reply.

    ``status`` is 200 if a success reply contains the error. ``secrets`` are keys that the message
    must not repeat, and ``usage`` is what the reply reports. Without it, the usage is unknown where
    the provider may bill the call.
    """
    message = details.message or f"Error code: {status}"
    looked_at = " ".join(message[:_LOOKED_AT].split())
    given_s = (retry_after(headers), details.wait_s, _wait_in(looked_at))
    asked_s = next((given for given in given_s if given is not None), None)
    verdict = judge(status, replace(details, message=looked_at, wait_s=asked_s))
    if usage is None and verdict.kind is ErrorKind.SERVER_ERROR and status in _MAY_BE_BILLED:
        usage = UNKNOWN_USAGE
    begin, hint = f"HTTP {status}: ", f"; {verdict.hint}" if verdict.hint else ""
    # A long message must not push out the hint.
    words = redacted_line(message, secrets)[: _MAX_MESSAGE - len(begin) - len(hint)]
    return LLMError(
        verdict.kind,
        f"{begin}{words}{hint}",
        retry_after_s=asked_s,
        status=status,
        usage=usage,
        stop_after=verdict.stop_after,
        limits=limits_in(looked_at, details.quotas) if status == _TOO_MANY else None,
    )


def refused_in_success(
    content: Any,
    *,
    headers: Mapping[str, str],
    secrets: tuple[str, ...] = (),
    usage: Usage | None = None,
) -> LLMError | None:
    """Return the LLMError in the JSON of a success reply, or None if it has none.

    A gateway that has already sent its status can report an error only there. The codes may include
    a status.
    """
    details = error_details_in(content)
    if not details.message and not (isinstance(content, dict) and content.get("error")):
        return None
    statuses = (int(code) for code in details.codes if _STATUS.fullmatch(code))
    status = next((status for status in statuses if status in _ERROR_STATUSES), _OK)
    return http_error(status, details, headers=headers, secrets=secrets, usage=usage)


def no_answer(what: str, reason: str, usage: Usage | None = None) -> LLMError:
    """Return the LLMError of a success reply that has no answer, and is no error either.

    A server that is starting may send it, or a proxy in front of one; but the provider may have
    answered, and bill that.

    Args:
        what: What the reply should be.
        reason: Why it is not.
        usage: What the reply reports; None if it cannot be read.
    """
    message = f"the reply is not {what}: {reason}"
    return LLMError(ErrorKind.SERVER_ERROR, message, usage=usage or UNKNOWN_USAGE)


def _wait_in(message: str) -> float | None:
    found = _WAIT.search(message)
    if found is None or not any(found.groups()):
        return None
    hours, minutes, rest, unit = found.groups(default="0")
    seconds = float(rest) / 1000 if unit == "ms" else float(rest)
    return 3600 * int(hours) + 60 * int(minutes) + seconds


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a reply asks to wait, or None.

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
    """Return a finite number, at least 0; None for other text."""
    if not given.isascii():
        return None
    try:
        seconds = float(given)
    except ValueError:
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def redacted_line(message: str, secrets: tuple[str, ...] = ()) -> str:
    """Return a provider's message on one line, shortened and without keys."""
    return known_secrets.redacted(" ".join(message.split()), secrets)[:_MAX_MESSAGE]
