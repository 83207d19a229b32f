"""Marker files that identify a storage by an id, which the run store also holds.

An unmounted folder is empty, and a wrong mount has other files: reads and writes alone notice
neither. So the first process that uses a storage writes an id there and in the run store. A process
that finds another id, or none, does not use the storage. Only an id that a worker found is
authoritative. The run store notes apart the id that a client found before the first worker started:
it only keeps a worker from marking another folder.

Each run's folder also has a marker, with the ids of the run and of the storage. A user of the run
store can name any folder as that of a run; fanout deletes only a folder with the right marker.
"""

from __future__ import annotations

import re
import secrets
import time
from typing import TYPE_CHECKING, Protocol

from fanout.core.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fanout.stores.blobs.base import Blobs

__all__ = [
    "MARKER",
    "RUN_MARKER",
    "StorageIds",
    "new_id",
    "run_marker",
    "storage_problem",
    "valid_storage_id",
]

# The marker in the root of a storage.
MARKER = ".fanout-storage"
# The marker in the folder of a run.
RUN_MARKER = ".fanout-run"
_ID = re.compile(r"[0-9a-f]{16}")
# The first process may be about to write the file.
_LOOKS = 10
_LOOK_S = 0.2


class StorageIds(Protocol):
    """The ids of storages in the run store."""

    def storage_id(
        self, root: str, *, first: str | None = None, is_worker: bool = False
    ) -> str | None:
        """Return the id of the storage at ``root``; set it to ``first`` if there is none.

        A client also reads the ids that clients have noted, and its ``first`` is noted there.
        """


def new_id() -> str:
    """Return an id that no other storage has."""
    return secrets.token_hex(8)


def valid_storage_id(text: bytes | None) -> str | None:
    """Return the id in a marker; None if there is no marker or its content is invalid."""
    found = (text or b"").decode(errors="replace").strip()
    return found if _ID.fullmatch(found) else None


def run_marker(run_id: str, storage_id: str) -> bytes:
    """Return the content of the marker in a run's folder."""
    return f"run {run_id} in storage {storage_id}\n".encode()


def storage_problem(
    ids: StorageIds,
    blobs: Blobs,
    *,
    is_worker: bool = False,
    sleep: Callable[[float], None] = time.sleep,
) -> str | None:
    """Return in one line why this process must not use a storage, or None if it may.

    The first process that asks marks the storage.

    Raises:
        BrokerError: The server does not answer.
    """
    root = blobs.root
    if root is None:
        return None
    try:
        return _problem(ids, blobs, root, is_worker=is_worker, sleep=sleep)
    except StorageError as error:
        return str(error)


def _problem(
    ids: StorageIds, blobs: Blobs, root: str, *, is_worker: bool, sleep: Callable[[float], None]
) -> str | None:
    found = blobs.marker()
    if found is not None and found == blobs.known_id and not is_worker:
        return None
    known = ids.storage_id(root, is_worker=is_worker)
    if known is None:
        noted = ids.storage_id(root) if is_worker else None
        own = found or noted or new_id()
        known = ids.storage_id(root, first=own, is_worker=is_worker)
        if known == own and found is None and noted is None:
            blobs.mark(own)
            found = blobs.marker()
    for _ in range(_LOOKS):
        if found is not None or known == blobs.known_id:
            break
        sleep(_LOOK_S)
        found = blobs.marker()
    if found == known:
        blobs.known_id = known
        return None
    what = "has no marker: it is not mounted here, or was emptied"
    if found is not None:
        what = f"is another storage (its marker is {found})"
    return (
        f"{root} {what}; runs of this broker have their files in the one whose marker is {known}. "
        f"Mount that, or, if this is the right one, write {known} into {root}/{MARKER}"
    )
