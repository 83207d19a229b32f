"""Reads the wire version of a message, and settles messages of another version.

A worker reads its fleet's version when it connects, before it takes its first message, and then
every few seconds, as it may have been disconnected while the fleet changed its version. Every
message states its version, too: no worker runs a message of another version.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

from fanout.broker import app as broker

if TYPE_CHECKING:
    from workers.context.version_gate import VersionGate

__all__ = ["settle_other_version", "version_of"]

# Larger than any version will ever be.
_LATEST = 1_000_000
_ID = re.compile(r"[\w/-]{1,100}", re.ASCII)

_log = logging.getLogger(__name__)


def version_of(headers: Any) -> int:
    """Return the wire version of a message; a message without one was sent by hand."""
    version = headers.get("wire") if isinstance(headers, dict) else None
    # The checks of the envelope reject a value that is no version.
    if type(version) is not int or not 0 <= version <= _LATEST:
        return broker.WIRE_VERSION
    return version


def settle_other_version(
    message: Any, gate: VersionGate, connection_errors: tuple[type[Exception], ...]
) -> None:
    """Put back a message of another version and stop, or drop it if no worker will take it.

    A message is dropped if the fleet speaks this worker's version: an outdated process published
    it, for a run that has ended or that this fleet processes. The reaper publishes again what such
    a run misses.
    """
    task_id, version = _shown_id(message.headers), version_of(message.headers)
    if gate.is_spoken():
        _log.error(
            "dropped message %s of version %s of the wire format, as this fleet speaks %s; "
            "what its run misses is published again", task_id, version, broker.WIRE_VERSION,
        )  # fmt: skip
        message.reject_log_error(_log, connection_errors)
    else:
        _log.warning("put back message %s: it is for another version of workers", task_id)
        message.requeue()


def _shown_id(headers: dict[str, Any]) -> str:
    # Any client may have written another value there, which a log must not show.
    task_id = headers.get("id")
    return task_id if isinstance(task_id, str) and _ID.fullmatch(task_id) else "without a sound id"
