"""Outages of the mock provider: it fails for all clients, for a while."""

from __future__ import annotations

import json
import random
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RESET", "SILENCE", "SORTS", "Outage"]

# In place of an answer: reset the connection, or never answer.
RESET, SILENCE = "reset", "silence"
_PARTLY = 0.6
_FLAP_S = 3.0
_HTML = b"<html><body><h1>The server is starting</h1></body></html>"

# By the reaction to each request; ``refused`` concerns new connections: see provider.py.
SORTS = {
    "500": "HTTP 500",
    "500-flapping": "HTTP 500, for 3 s of each 6 s",
    "500-some": "60 % of requests: HTTP 500",
    "503": "HTTP 503",
    "529": "HTTP 529, overloaded",
    "refused": "connections are refused, and open ones reset",
    "reset": "each connection is reset when a request has come",
    "silence": "no answer ever comes",
    "429": "HTTP 429 without Retry-After",
    "429-some": "60 % of requests: HTTP 429 with Retry-After: 1",
    "429-long": "HTTP 429 with Retry-After: 600",
    "html": "HTTP 200 with a page of HTML, as while a server starts",
}
_STATUSES = {
    "500": 500,
    "500-flapping": 500,
    "500-some": 500,
    "503": 503,
    "529": 529,
    "429": 429,
    "429-some": 429,
    "429-long": 429,
}
_REASONS = {429: "Too Many Requests", 500: "Internal Server Error", 503: "Service Unavailable",
            529: "Overloaded"}  # fmt: skip
_RETRY_AFTER_S = {"429-some": 1, "429-long": 600}


class Outage:
    """One outage, from now on.

    Args:
        sort: One of SORTS.
        lasts_s: Seconds.
        clock: A monotonic clock in seconds.
        seed: Selects the failing requests if only some fail.
    """

    def __init__(
        self,
        sort: str,
        lasts_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        seed: int = 1,
    ) -> None:
        if sort not in SORTS:
            raise ValueError(f"no outage {sort!r} (known: {', '.join(SORTS)})")
        self.sort = sort
        # When each request was struck, in seconds of the outage.
        self.struck_s: list[float] = []
        self._clock = clock
        self._began = clock()
        self._until = self._began + lasts_s
        self._fates = random.Random(seed)  # noqa: S311 - repeatable

    @property
    def is_on(self) -> bool:
        """Whether the outage continues."""
        return self._clock() < self._until

    @property
    def struck(self) -> int:
        """How many requests were struck."""
        return len(self.struck_s)

    def reply(self) -> bytes | str | None:
        """Return the reply in place of an answer, or RESET, SILENCE, or None for the answer."""
        if not self.is_on or self._spares():
            return None
        self.struck_s.append(self._clock() - self._began)
        if self.sort in _STATUSES:
            return _error(_STATUSES[self.sort], _RETRY_AFTER_S.get(self.sort))
        if self.sort == "html":
            return _response("200 OK", "text/html", _HTML)
        return SILENCE if self.sort == "silence" else RESET

    def _spares(self) -> bool:
        """Say whether a request still gets its answer."""
        if self.sort == "500-flapping":
            return bool((self._clock() - self._began) // _FLAP_S % 2)
        return self.sort.endswith("-some") and self._fates.random() > _PARTLY


def _error(status: int, retry_after_s: int | None) -> bytes:
    reason = _REASONS[status]
    error = {"message": reason, "type": "mock_error", "code": str(status)}
    more = "" if retry_after_s is None else f"retry-after: {retry_after_s}\r\n"
    body = json.dumps({"error": error}).encode()
    return _response(f"{status} {reason}", "application/json", body, more)


def _response(status: str, content_type: str, body: bytes, more: str = "") -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\n{more}"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
