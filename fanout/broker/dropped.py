"""Counts and logs the messages that the transport drops, without flooding the log."""

from __future__ import annotations

import logging
import time
from collections import Counter

import msgspec

from fanout.system.fork_locks import ForkSafeLock

__all__ = ["MALFORMED", "DroppedMessages", "dropped_messages"]

# Seconds between two log lines: a flood of messages must not fill the disk.
_LOG_EVERY_S = 1.0
# Errors that kombu raises for an item that is not a message.
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


class DroppedMessages:
    """Counts dropped messages by reason, and logs at most one line a second."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._lock = ForkSafeLock()
        self._logged_at = float("-inf")

    def add(self, reason: str, detail: str = "") -> None:
        """Count a dropped message. ``detail`` goes to the log, and must quote no content."""
        with self._lock:
            self.counts[reason] += 1
            total = self.counts.total()
            now = time.monotonic()
            if now - self._logged_at < _LOG_EVERY_S:
                return
            self._logged_at = now
        about = f" ({detail})" if detail else ""
        _log.error("dropped a message that %s%s; %d dropped so far", reason, about, total)


dropped_messages = DroppedMessages()
