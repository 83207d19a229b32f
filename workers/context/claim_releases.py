"""Releases the claims of deliveries that ended in this process without an outcome.

While a claim stands and its holder lives, no other worker begins the branch. The token of a claim
is the tag of its delivery. The process that took the message knows the tag even if a child began the
branch: so a parent releases the claim of a dead child, and never the claim of a later delivery.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Protocol

from fanout.core.errors import BrokerError
from fanout.system.logs import about

if TYPE_CHECKING:
    from collections.abc import Callable

    from fanout.core.ids import BranchId

__all__ = ["ClaimReleases"]

# Seconds by which a begin of a dead process may reach the server after the release of its claim.
_LATE_S = 1.0
# The most claims to release at a time: the same thread sends the worker's heartbeats.
_AT_ONCE = 200

_log = logging.getLogger(__name__)


class _ReleaseClaim(Protocol):
    def __call__(self, branch_id: BranchId, /, *, token: str, counts: bool) -> None: ...


class ClaimReleases:
    """Releases each claim twice: the second time when its begin can no longer be under way.

    Safe to share between threads. If the process ends earlier, its claims end with it.

    Args:
        release_claim: See ``RedisStore.release_claim``; it fails at once if the server is unreachable.
        clock: Monotonic seconds.
    """

    def __init__(
        self, release_claim: _ReleaseClaim, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._release_claim = release_claim
        self._clock = clock
        self._lock = threading.Lock()
        # Whether the begin still counts, and when the claim was first released.
        self._pending: dict[tuple[BranchId, str], tuple[bool, float | None]] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def later(self, branch_id: BranchId, token: str, *, counts: bool) -> None:
        """Release a claim at the next ``again``.

        Args:
            branch_id: The branch.
            token: The token of the claim; claims of other deliveries stay.
            counts: Whether the begin still counts as a delivery.
        """
        with self._lock:
            self._pending.setdefault((branch_id, token), (counts, None))

    def now(self, branch_id: BranchId, token: str, *, counts: bool) -> bool:
        """Release a claim now, or later if the server refuses; return whether it is released."""
        self.later(branch_id, token, counts=counts)
        return self._release(branch_id, token)

    def again(self) -> None:
        """Release pending claims until the server refuses; called every few seconds."""
        with self._lock:
            some = list(self._pending)[:_AT_ONCE]
        for branch_id, token in some:
            if not self._release(branch_id, token):
                return

    def _release(self, branch_id: BranchId, token: str) -> bool:
        with self._lock:
            # Moved to the end: a claim that the server always refuses holds up no other.
            counts, first = self._pending.pop((branch_id, token), (False, None))
            self._pending[branch_id, token] = (counts, first)
        sent_at = self._clock()
        try:
            self._release_claim(branch_id, token=token, counts=counts)
        except BrokerError as error:
            _log.warning("a claim is not given up yet: %s", error, extra=about(branch_id))
            return False
        with self._lock:
            if first is not None and sent_at - first >= _LATE_S:
                self._pending.pop((branch_id, token), None)
            elif first is None:
                self._pending[branch_id, token] = (counts, self._clock())
        return True
