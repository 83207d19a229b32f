"""What all providers that speak HTTP share: what an error reply means."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from fanout import secrets as known_secrets
from fanout.errors import LLMError
from fanout.runs import ErrorKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fanout.runs import Usage

__all__ = ["http_error", "redacted", "retry_after"]

_MAX_MESSAGE = 300

_BY_STATUS = {
    401: ErrorKind.AUTH,
    402: ErrorKind.BUDGET,
    403: ErrorKind.AUTH,
    408: ErrorKind.TIMEOUT,
    409: ErrorKind.SERVER_ERROR,
    425: ErrorKind.SERVER_ERROR,
    429: ErrorKind.RATE_LIMITED,
}
_FIRST_SERVER_ERROR = 500

# Codes and phrases by which providers and compatible servers say the same thing.
_BY_WORDS = (
    (ErrorKind.BUDGET, ("insufficient_quota", "billing", "credit balance")),
    (
        ErrorKind.CONTEXT_LENGTH,
        (
            "context_length",
            "context length",
            "context window",
            "exceed_context_size",
            "maximum context",
            "prompt is too long",
            "available context size",
        ),
    ),
    (ErrorKind.CONTENT_FILTER, ("content_filter", "content_policy", "content management policy")),
)
_WORDED_STATUSES = frozenset({400, 403, 413, 422, 429})


def http_error(
    *,
    status: int,
    message: str,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
    secrets: tuple[str, ...] = (),
    usage: Usage | None = None,
) -> LLMError:
    """Return the LLMError of an HTTP error reply.

    Args:
        status: The HTTP status.
        message: What the provider says.
        code: Its machine-readable code or type, or None.
        headers: The reply's headers.
        secrets: Keys that the message must not repeat.
        usage: What the reply says that the call consumed, or None.
    """
    return LLMError(
        _kind(status, f"{code or ''} {message}".lower()),
        f"HTTP {status}: {redacted(message, secrets)}",
        retry_after_s=retry_after(headers or {}),
        status=status,
        usage=usage,
    )


def _kind(status: int, words: str) -> ErrorKind:
    if status in _WORDED_STATUSES:
        for kind, phrases in _BY_WORDS:
            if any(phrase in words for phrase in phrases):
                return kind
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    return ErrorKind.SERVER_ERROR if status >= _FIRST_SERVER_ERROR else ErrorKind.BAD_REQUEST


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return how many seconds a reply asks to wait, or None.

    Source: RFC 9110, section 10.2.3 (seconds or a date), and ``retry-after-ms``, which OpenAI and
    Azure send.
    """
    milliseconds = headers.get("retry-after-ms")
    seconds = headers.get("retry-after")
    try:
        if milliseconds is not None:
            return max(0.0, float(milliseconds) / 1000)
        if seconds is not None:
            return max(0.0, float(seconds))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(seconds or "").timestamp() - time.time())
    except ValueError:
        return None


def redacted(message: str, secrets: tuple[str, ...] = ()) -> str:
    """Return a provider's message, short and without keys."""
    return known_secrets.redacted(" ".join(message.split()), secrets)[:_MAX_MESSAGE]
