"""Which version of the wire format a message says it has, and what becomes of another one.

A worker asks for its fleet's version when it connects, before it takes its first message, and from
then on every few seconds, as it may have been cut off while the fleet changed its version. Every
message says its version, too: no worker runs one of another version.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

from fanout.broker import app as broker

if TYPE_CHECKING:
    from workers.context.version_gate import VersionGate

__all__ = ["settle_other_version", "version_of"]

# Any version that there will be.
_LATEST = 1_000_000
_ID = re.compile(r"[\w/-]{1,100}", re.ASCII)

_log = logging.getLogger(__name__)


def version_of(headers: Any) -> int:
    """Return which version a message says it has; one that says none was sent by hand."""
    version = headers.get("wire") if isinstance(headers, dict) else None
    # The checks of the envelope see to what is no version.
    if type(version) is not int or not 0 <= version <= _LATEST:
        return broker.WIRE_VERSION
    return version


def settle_other_version(
    message: Any, gate: VersionGate, connection_errors: tuple[type[Exception], ...]
) -> None:
    """Put a message of another version back and stop; or drop one that no worker will take.

    A process that the fleet had left behind published the second, for a run that is over or that
    this fleet processes: the reaper publishes again what such a run misses.
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
    # Anybody may have written something else there, which a log must not show.
    task_id = headers.get("id")
    return task_id if isinstance(task_id, str) and _ID.fullmatch(task_id) else "without a sound id"
