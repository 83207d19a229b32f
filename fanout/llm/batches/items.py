"""Reads the items of batches, valid or not."""

from __future__ import annotations

import json
import math
from datetime import datetime
from typing import TYPE_CHECKING, Any

from fanout.core.errors import LLMError
from fanout.core.records import NO_CALL, ErrorKind
from fanout.llm.batches.base import BatchError
from fanout.llm.http_client import HttpReply
from fanout.llm.http_errors import redacted_line
from fanout.llm.usage import UNKNOWN_USAGE

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PAGE", "batches_in", "count_of", "item_reply", "next_page", "seconds_of", "undone",
           "unreadable"]  # fmt: skip

# How many batches a page of a list has.
PAGE = 100

_WORDS = {
    ErrorKind.EXPIRED: "the batch expired before the provider came to it",
    ErrorKind.CANCELLED: "the batch was cancelled before the provider came to it",
}


def item_reply(status: int, content: Any) -> HttpReply:
    """Return the reply that a call outside of a batch would have had. Raises ValueError."""
    return HttpReply(status, {"content-type": "application/json"}, json.dumps(content).encode())


def undone(kind: ErrorKind, message: str = "") -> BatchError:
    """Return the error of a request that the provider did not come to: it cost nothing."""
    words = redacted_line(message) or _WORDS[kind]
    return BatchError.of(LLMError(kind, words, usage=NO_CALL, is_own=True))


def unreadable(message: str) -> BatchError:
    """Return the error of a result that cannot be read: the call may have been billed."""
    error = LLMError(ErrorKind.SERVER_ERROR, message, usage=UNKNOWN_USAGE, is_own=True)
    return BatchError.of(error)


def batches_in(page: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the batches with an id in a page of a list."""
    data = page.get("data")
    for batch in data if isinstance(data, list) else ():
        if isinstance(batch, dict) and isinstance(batch.get("id"), str):
            yield batch


def next_page(page: dict[str, Any], after: str) -> dict[str, str] | None:
    """Return what asks for the page after one by the parameter ``after``; None for the last one."""
    last = [batch["id"] for batch in batches_in(page)][-1:]
    if not last or not page.get("has_more"):
        return None
    return {"limit": str(PAGE), after: last[0]}


def count_of(value: Any) -> int | None:
    """Return a count, also one in text; None for anything else."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value[:18])
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if is_count else None


def seconds_of(value: Any) -> float | None:
    """Return a moment in seconds since the epoch, from a number or a text of RFC 3339."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if math.isfinite(value) else None
    try:
        return datetime.fromisoformat(value).timestamp() if isinstance(value, str) else None
    except (ValueError, OverflowError):
        return None
