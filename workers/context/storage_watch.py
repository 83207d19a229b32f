"""Whether a worker sees the storage that its fleet uses, and what a missing file in it means."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from fanout.core.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fanout.core.ids import ShardId
    from fanout.core.settings import Settings
    from fanout.stores import RedisStore

__all__ = ["StorageWatch"]

# Each look at an object store is paid for; a folder may be unmounted at any moment.
_REMOTE_S = 30.0
_MOST_MISSING = 1_000

_log = logging.getLogger(__name__)


class StorageWatch:
    """Looks at the storage's marker.

    Args:
        store: Where it is told which storage is the right one.
        settings: Whether there is a storage, and after how long a file that is missing is lost.
        clock: Seconds, rising.

    Attributes:
        problem: Why the worker is to take no messages; empty where it may.
    """

    def __init__(
        self, store: RedisStore, settings: Settings, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.problem = ""
        self._store = store
        self._clock = clock
        self._is_used = settings.storage is not None
        self._every_s = _REMOTE_S if "://" in (settings.storage or "") else 0.0
        self._looked_at = float("-inf")
        self._lost_after_s = float(settings.visibility_timeout_s)
        self._missing_since: dict[ShardId, float] = {}

    def look(self, *, at_once: bool = False) -> None:
        """Look whether it is the right one, if that is due. Raises BrokerError."""
        now = self._clock()
        if not self._is_used or (not at_once and now - self._looked_at < self._every_s):
            return
        self._looked_at = now
        problem = self._store.storage_problem(is_worker=True) or ""
        if problem and not self.problem:
            _log.error("this worker takes no messages: FANOUT_STORAGE: %s", problem)
        elif self.problem and not problem:
            _log.warning("this worker takes messages again: its storage is back")
        self.problem = problem

    def is_lost(self, shard_id: ShardId) -> bool:
        """Say whether a file of a shard that was not found is lost for good.

        Not while this is another storage; nor before other workers have had time to find it.
        """
        try:
            self.look(at_once=True)
        except BrokerError:
            return False
        if self.problem:
            return False
        if len(self._missing_since) >= _MOST_MISSING:
            self._missing_since.clear()
        since = self._missing_since.setdefault(shard_id, self._clock())
        return self._clock() - since >= self._lost_after_s
