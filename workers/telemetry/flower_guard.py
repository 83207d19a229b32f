"""Protects Flower's pages: limits guesses of its password, and what a page may load."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from typing import TYPE_CHECKING

from tornado.web import OutputTransform, RequestHandler

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tornado.httputil import HTTPHeaders

__all__ = ["Attempts", "SecurityHeaders", "TooManyAttempts", "is_wrong"]

_FORGIVEN_EACH_S = 6.0
_MOST_ADDRESSES = 10_000
_TOO_MANY = 429

# The only inline script of Flower's templates: whether the page reloads itself.
_INLINE = ("\nvar autorefresh = 0;\n", "\nvar autorefresh = 1;\n")


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


_SCRIPTS = " ".join(f"'sha256-{_hash(script)}'" for script in _INLINE)
_POLICY = (
    f"default-src 'none'; script-src 'self' {_SCRIPTS}; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Attempts:
    """Counts wrong passwords by address; one is forgiven every few seconds.

    Args:
        most: Wrong passwords that an address may try before it has to wait.
        clock: Monotonic seconds.
    """

    def __init__(self, most: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        # When all failures of an address are forgiven.
        self._until: dict[str, float] = {}

    def wait_s(self, address: str) -> float:
        """Return how many seconds this address has to wait before its next password."""
        left = self._until.get(address, 0.0) - self._clock()
        return max(0.0, left - (self._most - 1) * _FORGIVEN_EACH_S)

    def failed(self, address: str) -> None:
        """Count a wrong password."""
        now = self._clock()
        if address not in self._until and len(self._until) >= _MOST_ADDRESSES:
            self._until = {each: until for each, until in self._until.items() if until > now}
        if address in self._until or len(self._until) < _MOST_ADDRESSES:
            self._until[address] = max(now, self._until.get(address, now)) + _FORGIVEN_EACH_S


def is_wrong(authorization: str, logins: Sequence[str]) -> bool:
    """Return whether a header gives a login that is none of these."""
    scheme, _, given = authorization.partition(" ")
    try:
        login = base64.b64decode(given.strip(), validate=True)
    except (binascii.Error, ValueError):
        return True
    known = [hmac.compare_digest(login, each.encode()) for each in logins]
    return scheme.lower() != "basic" or not any(known)


class TooManyAttempts(RequestHandler):
    """The answer to a client that has tried too many passwords, right or wrong."""

    def initialize(self, wait_s: float) -> None:
        """Set how long the client has to wait."""
        self._wait_s = wait_s

    def prepare(self) -> None:
        """Answer any request with the error."""
        self.set_status(_TOO_MANY)
        self.set_header("Retry-After", str(max(1, round(self._wait_s))))
        self.finish("too many wrong passwords")


class SecurityHeaders(OutputTransform):
    """Adds the headers to every answer."""

    def transform_first_chunk(
        self,
        status_code: int,
        headers: HTTPHeaders,
        chunk: bytes,
        finishing: bool,  # noqa: ARG002, FBT001 - tornado's
    ) -> tuple[int, HTTPHeaders, bytes]:
        """Add the headers to the first chunk."""
        headers.update(_HEADERS)
        return status_code, headers, chunk
