"""The seam to where blobs are kept, and what the run store holds in their place.

The run store holds for each blob either the blob itself or a reference: the root under which files
are, and a token that is part of the file's name. So

* what counts is decided where it always was, by the store's scripts: who writes second has written
  a file that nothing refers to;
* a reader finds the files of a run that was stored under another root than its own;
* and whoever can write to the server cannot have a process read any other file: its path follows
  from the branch that is asked for.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from typing import Self

    from fanout.core.ids import ShardId, StageId

__all__ = ["Blobs", "Reference", "blob_folder", "blob_name"]

# Neither zlib nor JSON begins so.
_MARK = b"@"
_REFERENCE = re.compile(rb"@([0-9a-f]{8}) ([^\s\x00-\x1f]+)")


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """What the run store holds of a blob that is a file.

    Attributes:
        root: The folder, or the URL, under which it is.
        token: The last part of its name: another one each time that the blob is written.
    """

    root: str
    token: str

    def encode(self) -> bytes:
        """Return the bytes that stand for it."""
        return _MARK + f"{self.token} {self.root}".encode()

    @classmethod
    def decode(cls, held: bytes) -> Self | None:
        """Return the reference of what the store holds, or None where that is the blob itself."""
        if not held.startswith(_MARK):
            return None
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


class Blobs(Protocol):
    """Keeps blobs by name: ``run/sN/M.in``, ``run/sN/M.out`` and ``run/result``."""

    @property
    def known_id(self) -> str | None:
        """The marker that the storage must have; None: nobody has looked yet."""

    @known_id.setter
    def known_id(self, storage_id: str | None) -> None: ...

    @property
    def root(self) -> str | None:
        """Where new files go; None where blobs are kept in the run store itself."""

    def marker(self) -> str | None:
        """Return the id of the storage, or None where it has none. Raises StorageError."""

    def mark(self, storage_id: str) -> None:
        """Give the storage an id. Raises StorageError."""

    def claim(self, run_id: str) -> None:
        """Mark a run's folder, before its first file, as that of the run in this storage.

        Nothing is deleted in a folder that has no such marker. It is written once for a run.

        Raises:
            StorageError: The storage does not answer, or refuses, or has no id.
        """

    def keep(self, name: str, blob: bytes) -> bytes:
        """Keep a blob, safely, and return what the run store is to hold of it.

        Raises:
            StorageError: The storage does not answer, or refuses.
        """

    def load(self, name: str, held: bytes) -> bytes:
        """Return the blob of which the run store holds ``held``.

        Raises:
            LostDataError: There is no such file.
            StorageError: The storage does not answer, or refuses, or is not known here.
        """

    def drop(self, name: str, held: bytes) -> None:
        """Delete a blob to which nothing refers any more, if that can be done."""

    def drop_all(self, folder: str) -> bool:
        """Delete all blobs of a run (``run``), or of one of its stages (``run/sN``).

        Returns:
            Whether nothing of it is left; False where the folder is not marked as the run's, or
            holds what no run has: it is then left as it is, and the log says so.

        Raises:
            StorageError: The storage does not answer, or refuses.
        """
