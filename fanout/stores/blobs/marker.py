"""Which storage this is: an id in a file in its root, which the run store knows, too.

A folder that is not mounted is an empty one, and another mount has other files: both look well to
whoever only writes and reads. So the first who uses a storage leaves an id there and in the run
store, and whoever finds another id, or none, keeps its hands off.
"""

from __future__ import annotations

import re
import secrets
import time
from typing import TYPE_CHECKING, Protocol

from fanout.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fanout.stores.blobs.base import Blobs

__all__ = ["MARKER", "Ids", "new_id", "sound_id", "storage_problem"]

# The name of the file.
MARKER = ".fanout-storage"
_ID = re.compile(r"[0-9a-f]{16}")
# Whoever was first may be about to write the file.
_LOOKS = 10
_LOOK_S = 0.2


class Ids(Protocol):
    """What the run store knows of storages."""

    def storage_id(self, root: str, *, first: str | None = None) -> str | None:
        """Return the id of the storage at ``root``; ``first`` becomes that where there is none."""


def new_id() -> str:
    """Return an id that no other storage has."""
    return secrets.token_hex(8)


def sound_id(text: bytes | None) -> str | None:
    """Return the id that a marker holds; None where there is none, or it holds something else."""
    found = (text or b"").decode(errors="replace").strip()
    return found if _ID.fullmatch(found) else None


def storage_problem(
    ids: Ids, blobs: Blobs, *, sleep: Callable[[float], None] = time.sleep
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
        return _problem(ids, blobs, root, sleep)
    except StorageError as error:
        return str(error)


def _problem(ids: Ids, blobs: Blobs, root: str, sleep: Callable[[float], None]) -> str | None:
    found = blobs.marker()
    if found is not None and found == blobs.known_id:
        return None
    known = ids.storage_id(root)
    if known is None:
        own = found or new_id()
        known = ids.storage_id(root, first=own)
        if known == own and found is None:
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
