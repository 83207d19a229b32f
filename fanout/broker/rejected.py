"""What the transport refuses, counted, and said without flooding the log."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter

import msgspec

__all__ = ["MALFORMED", "Refusals", "refusals"]

# Of what was refused, one line a second says so: a flood must not fill the disk with lines.
_SAYS_EVERY_S = 1.0
# What an item that is no message makes kombu raise, beyond the errors of a connection.
MALFORMED = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    RecursionError,
    OverflowError,
    msgspec.MsgspecError,
)

_log = logging.getLogger(__name__)


class Refusals:
    """Counts what was refused, by reason, and says so without flooding the log."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._said_at = float("-inf")

    def add(self, reason: str, detail: str = "") -> None:
        """Count a message that is dropped. ``detail`` is what may be said: no content."""
        with self._lock:
            self.counts[reason] += 1
            total = self.counts.total()
            now = time.monotonic()
            if now - self._said_at < _SAYS_EVERY_S:
                return
            self._said_at = now
        about = f" ({detail})" if detail else ""
        _log.error("dropped a message that %s%s; %d dropped so far", reason, about, total)


refusals = Refusals()
