"""The time that one part of a file may take: what a consumer does between two parts does not count."""

from __future__ import annotations

import time

__all__ = ["Deadline"]


class Deadline:
    """A limit of the seconds until the next part of a file is there.

    Args:
        limit_s: The limit: the ``parse_timeout_s`` of a job.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._ends_at = 0.0
        self.restart()

    def restart(self) -> None:
        """Begin the next part."""
        self._ends_at = time.monotonic() + self._limit_s

    @property
    def has_passed(self) -> bool:
        """Whether the part takes too long."""
        return time.monotonic() > self._ends_at

    @property
    def reason(self) -> str:
        """What to say if it has passed."""
        return f"reading it took longer than {self._limit_s:g} s (parse_timeout_s)"
