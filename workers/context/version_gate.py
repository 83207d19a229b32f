"""Keeps a worker away from a fleet that speaks another version of the wire format."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fanout.broker.fleet_version import claim_wire
from fanout.core.errors import WireVersionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fanout.stores import RedisStore

__all__ = ["VersionGate"]

# Several beats of the presence.
_TTL_S = 15.0

_log = logging.getLogger(__name__)


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
