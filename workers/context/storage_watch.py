"""Checks that a worker sees its fleet's storage, and whether a missing file is lost."""

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

# A read of an object store costs money; a folder may be unmounted at any moment.
_REMOTE_S = 30.0
_MOST_MISSING = 1_000

_log = logging.getLogger(__name__)


class StorageWatch:
    """Reads the marker of the storage.

    Args:
        store: The store that names the fleet's storage.
        settings: Whether there is a storage, and the seconds until a missing file counts as lost.
        clock: Monotonic seconds.

    Attributes:
        problem: Why the worker must take no messages; empty if it may.
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
        """Check for the fleet's storage, if a check is due. Raises BrokerError."""
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
        """Return whether a missing file of a shard is lost.

        It is not lost while this worker sees another storage, or before other workers had time to
        find it.
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
