"""Keeps a worker away from a fleet, and from messages, of another version of the wire format.

A worker reads its fleet's version when it connects, before it takes its first message, and then
every few seconds, as it may have been disconnected while the fleet changed its version. Every
message states its version, too: no worker runs a message of another version.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

from fanout.broker.fleet_version import claim_wire
from fanout.core.errors import WireVersionError
from fanout.core.version import WIRE_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable

    from fanout.stores import RedisStore

__all__ = ["VersionGate", "version_of"]

# Several beats of the presence.
_TTL_S = 15.0
# Larger than any version will ever be.
_LATEST = 1_000_000
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
