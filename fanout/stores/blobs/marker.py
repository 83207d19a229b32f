"""Which storage this is: an id in a file in its root, which the run store knows, too.

A folder that is not mounted is an empty one, and another mount has other files: both look well to
whoever only writes and reads. So the first who uses a storage leaves an id there and in the run
store, and whoever finds another id, or none, keeps its hands off. What the run store knows for
certain is what a worker has found. What a client has found before the first worker came is noted
apart: it keeps a worker from marking another folder, and no more.

Each run's folder has a marker too, with the run's id and the storage's: whoever can write to the
run store can name any folder as that of a run, and only one that is marked so is deleted.
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

__all__ = ["MARKER", "RUN_MARKER", "Ids", "new_id", "run_marker", "sound_id", "storage_problem"]

# The name of the file.
MARKER = ".fanout-storage"
# The one in the folder of a run.
RUN_MARKER = ".fanout-run"
_ID = re.compile(r"[0-9a-f]{16}")
# Whoever was first may be about to write the file.
_LOOKS = 10
_LOOK_S = 0.2


class Ids(Protocol):
    """What the run store knows of storages."""

    def storage_id(
        self, root: str, *, first: str | None = None, is_worker: bool = False
    ) -> str | None:
        """Return the id of the storage at ``root``; ``first`` becomes that where there is none.

        A client is also told what clients have noted, and ``first`` of a client is noted so.
        """


def new_id() -> str:
    """Return an id that no other storage has."""
    return secrets.token_hex(8)


def sound_id(text: bytes | None) -> str | None:
    """Return the id that a marker holds; None where there is none, or it holds something else."""
    found = (text or b"").decode(errors="replace").strip()
    return found if _ID.fullmatch(found) else None


def run_marker(run_id: str, storage_id: str) -> bytes:
    """Return what the marker in a run's folder holds."""
    return f"run {run_id} in storage {storage_id}\n".encode()


def storage_problem(
    ids: Ids,
    blobs: Blobs,
    *,
    is_worker: bool = False,
    sleep: Callable[[float], None] = time.sleep,
) -> str | None:
    """Return in one line why a storage is not to be used from here, or None where it is.

    The first who asks marks it.

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
    ids: Ids, blobs: Blobs, root: str, *, is_worker: bool, sleep: Callable[[float], None]
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
