"""Claims of deliveries that have ended here without an outcome: given up, until that is certain.

While a claim stands and its holder lives, nobody else begins the branch. The token of a claim is
the tag of its delivery, which the process that took the message knows, whoever began the branch for
it: so the claim of a child that is dead is given up by its parent, and never that of another
delivery which has begun the branch since.
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

# A begin that a dead process has sent may reach the server behind what was to undo it; not by more
# than this.
_LATE_S = 1.0
# How many are tried in a row: the same thread says that its worker is alive.
_AT_ONCE = 200

_log = logging.getLogger(__name__)


class _Unbegin(Protocol):
    def __call__(self, branch_id: BranchId, /, *, token: str, counts: bool) -> None: ...


class ClaimReleases:
    """Gives claims up: each twice, the second time when no begin of it can be under way any more.

    Safe to share. Where the process ends before, its claims end with it.

    Args:
        unbegin: See ``RedisStore.unbegin``; it does not wait for a server that is away.
        clock: Seconds, rising.
    """

    def __init__(self, unbegin: _Unbegin, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._unbegin = unbegin
        self._clock = clock
        self._lock = threading.Lock()
        # Whether it counts as a begin all the same, and when it was first given up.
        self._pending: dict[tuple[BranchId, str], tuple[bool, float | None]] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def later(self, branch_id: BranchId, token: str, *, counts: bool) -> None:
        """Give a claim up soon, if it stands: see ``again``.

        Args:
            branch_id: The branch.
            token: Of the claim; that of another delivery stays.
            counts: Whether it was a begin all the same.
        """
        with self._lock:
            self._pending.setdefault((branch_id, token), (counts, None))

    def now(self, branch_id: BranchId, token: str, *, counts: bool) -> bool:
        """Give a claim up; where the server does not take that, soon. Say whether it did now."""
        self.later(branch_id, token, counts=counts)
        return self._give_up(branch_id, token)

    def again(self) -> None:
        """Give up what is left, if the server takes it; called every few seconds."""
        with self._lock:
            some = list(self._pending)[:_AT_ONCE]
        for branch_id, token in some:
            if not self._give_up(branch_id, token):
                return

    def _give_up(self, branch_id: BranchId, token: str) -> bool:
        with self._lock:
            # Behind all others: one that is always refused keeps none of them.
            counts, first = self._pending.pop((branch_id, token), (False, None))
            self._pending[branch_id, token] = (counts, first)
        sent_at = self._clock()
        try:
            self._unbegin(branch_id, token=token, counts=counts)
        except BrokerError as error:
            _log.warning("a claim is not given up yet: %s", error, extra=about(branch_id))
            return False
        with self._lock:
            if first is not None and sent_at - first >= _LATE_S:
                self._pending.pop((branch_id, token), None)
            elif first is None:
                self._pending[branch_id, token] = (counts, self._clock())
        return True
