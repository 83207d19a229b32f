"""Blob storage in the run store itself, and the references that the run store holds to files.

The run store holds for each blob either the blob itself or a reference: the root of the files, and
a token that is part of the file's name. So

* the store's scripts decide which blob counts: nothing refers to the file of a later writer;
* a reader finds the files of a run that was stored under another root than its own;
* a user of the server cannot make a process read any other file: the path follows from the branch.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from typing import Self

    from fanout.core.ids import ShardId, StageId

__all__ = [
    "MARKER",
    "RUN_MARKER",
    "Blobs",
    "Reference",
    "blob_folder",
    "blob_name",
    "run_marker",
    "valid_storage_id",
]

# The file with the id of a storage, in its root.
MARKER = ".fanout-storage"
# The file with the ids of the run and of the storage, in a run's folder. A user of the server can
# name any folder as that of a run; fanout deletes only a folder with the right marker.
RUN_MARKER = ".fanout-run"
_STORAGE_ID = re.compile(r"[0-9a-f]{16}")

# Neither zlib data nor JSON begins with "@".
_REFERENCE = re.compile(rb"@([0-9a-f]{8}) ([^\s\x00-\x1f]+)")


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """The value that the run store holds for a blob in a file.

    Attributes:
        root: The folder or URL of the storage.
        token: The last part of the file's name; every write makes a new one.
    """

    root: str
    token: str

    def encode(self) -> bytes:
        """Return the reference as bytes."""
        return f"@{self.token} {self.root}".encode()

    @classmethod
    def decode(cls, held: bytes) -> Self | None:
        """Return the reference in a stored value, or None if the value is the blob itself."""
        match = _REFERENCE.fullmatch(held)
        if match is None:
            return None
        return cls(root=match[2].decode(errors="replace"), token=match[1].decode())


def blob_folder(stage_id: StageId) -> str:
    """Return the folder of a stage."""
    return f"{stage_id.run_id}/s{stage_id.stage}"


def blob_name(shard_id: ShardId, part: str) -> str:
    """Return the name of a part of a shard: ``in`` is its input, ``out`` its outcomes."""
    return f"{blob_folder(shard_id.stage_id)}/{shard_id.shard}.{part}"


def valid_storage_id(text: bytes | None) -> str | None:
    """Return the id in a marker; None if there is no marker or its content is invalid."""
    found = (text or b"").decode(errors="replace").strip()
    return found if _STORAGE_ID.fullmatch(found) else None


def run_marker(run_id: str, storage_id: str) -> bytes:
    """Return the content of the marker in a run's folder."""
    return f"run {run_id} in storage {storage_id}\n".encode()


class Blobs:
    """Keeps blobs in the run store itself; FileBlobs keeps them in files.

    Blobs have names: ``run/sN/M.in``, ``run/sN/M.out`` and ``run/result``. Both classes read the
    blobs that other processes wrote as files.

    Args:
        patience_s: Seconds of retries if a storage does not answer.

    Attributes:
        root: The root of new files; None if the run store itself holds the blobs.
        known_id: The id in the marker that the storage must have; None before the first check.
    """

    root: str | None = None
    known_id: str | None = None

    def __init__(self, *, patience_s: float = 0.0) -> None:
        self._patience_s = patience_s

    def marker(self) -> str | None:
        """Return the id of the storage, or None if it has none. Raises StorageError."""
        return None

    def mark(self, storage_id: str) -> None:
        """Give the storage an id. Raises StorageError."""

    def claim(self, run_id: str) -> None:
        """Mark a run's folder, before its first file, as that of the run. Raises StorageError.

        Nothing is deleted in a folder without such a marker.
        """

    def keep(self, name: str, blob: bytes) -> bytes:  # noqa: ARG002 - for files
        """Write a blob durably, and return the value for the run store. Raises StorageError."""
        return blob

    def load(self, name: str, held: bytes) -> bytes:
        """Return the blob for the value ``held`` in the run store.

        Raises:
            LostDataError: There is no such file.
            StorageError: The storage does not answer, or refuses, or is not known here.
        """
        reference = Reference.decode(held)
        if reference is None:
            return held
        # Imported here, as that module imports this one.
        from fanout.stores.blobs.files import load_elsewhere

        return load_elsewhere(name, reference, patience_s=self._patience_s)

    def drop(self, name: str, held: bytes) -> None:
        """Delete a blob that nothing refers to any more; ignore errors."""

    def drop_all(self, folder: str) -> bool:  # noqa: ARG002 - for files
        """Delete all blobs of a run (``run``), or of one of its stages (``run/sN``).

        Returns:
            Whether no file is left; False if the folder is not marked as the run's, or has other
            files: then nothing is deleted, and the log says why.

        Raises:
            StorageError: The storage does not answer, or refuses.
        """
        return True
