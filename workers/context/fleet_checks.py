"""Keeps a worker from taking messages: of another wire version, or without the fleet's storage.

A worker reads its fleet's version when it connects, before it takes its first message, and then
every few seconds, as it may have been disconnected while the fleet changed its version. Every
message states its version, too: no worker runs a message of another version.
"""

from __future__ import annotations

import logging
import re
import time
from typing import TYPE_CHECKING, Any

from fanout.broker.fleet_version import claim_wire
from fanout.core.errors import BrokerError, WireVersionError
from fanout.core.version import WIRE_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable

    from fanout.core.ids import ShardId
    from fanout.core.settings import Settings
    from fanout.stores import RedisStore

__all__ = ["StorageWatch", "VersionGate", "version_of"]

# Several beats of the presence.
_TTL_S = 15.0
# Larger than any version will ever be.
_LATEST = 1_000_000
# A read of an object store costs money; a folder may be unmounted at any moment.
_REMOTE_S = 30.0
_MOST_MISSING = 1_000
_ID = re.compile(r"[\w/-]{1,100}", re.ASCII)

_log = logging.getLogger(__name__)


def version_of(headers: Any) -> int:
    """Return the wire version of a message; a message without one was sent by hand."""
    version = headers.get("wire") if isinstance(headers, dict) else None
    # The checks of the envelope reject a value that is no version.
    if type(version) is not int or not 0 <= version <= _LATEST:
        return WIRE_VERSION
    return version


def _shown_id(headers: dict[str, Any]) -> str:
    # Any client may have written another value there, which a log must not show.
    task_id = headers.get("id")
    return task_id if isinstance(task_id, str) and _ID.fullmatch(task_id) else "without a sound id"


class VersionGate:
    """Checks whether a worker speaks its fleet's wire version; stops the worker if not.

    Args:
        store: The fleet's store.
        holder: The name of the worker's claims.
    """

    def __init__(self, store: RedisStore, holder: str) -> None:
        self._store = store
        self._holder = holder
        self._stop: Callable[[], None] | None = None
        self._is_refused = False

    def when_refused(self, stop: Callable[[], None]) -> None:
        """Set the callback that stops the worker; it may be called in any thread."""
        self._stop = stop

    def is_spoken(self) -> bool:
        """Return whether the worker speaks the fleet's version. Raises BrokerError."""
        try:
            claim_wire(self._store, holder=self._holder, ttl_s=_TTL_S)
        except WireVersionError as error:
            self._refuse(error)
            return False
        return True

    def _refuse(self, error: WireVersionError) -> None:
        if not self._is_refused:
            self._is_refused = True
            _log.critical("fanout: %s", error)
            if self._stop is not None:
                self._stop()

    def release(self) -> None:
        """Remove this worker's claim on the version. Raises BrokerError."""
        self._store.release_wire(self._holder)

    def settle(self, message: Any, connection_errors: tuple[type[Exception], ...]) -> None:
        """Put back a message of another version and stop, or drop it if no worker will take it.

        A message is dropped if the fleet speaks this worker's version: an outdated process published
        it, for a run that has ended or that this fleet processes. The reaper publishes again what
        such a run misses.
        """
        task_id, version = _shown_id(message.headers), version_of(message.headers)
        if self.is_spoken():
            _log.error(
                "dropped message %s of version %s of the wire format, as this fleet speaks %s; "
                "what its run misses is published again", task_id, version, WIRE_VERSION,
            )  # fmt: skip
            message.reject_log_error(_log, connection_errors)
        else:
            _log.warning("put back message %s: it is for another version of workers", task_id)
            message.requeue()


class StorageWatch:
    """Checks that a worker sees its fleet's storage, and whether a missing file is lost.

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
