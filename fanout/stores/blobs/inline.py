"""Blob storage in the run store itself."""

from __future__ import annotations

from fanout.stores.blobs.base import Reference

__all__ = ["InlineBlobs"]


class InlineBlobs:
    """See ``fanout.stores.blobs.base.Blobs``. Also reads blobs that others wrote as files.

    Args:
        patience_s: Seconds for which a storage that does not answer is tried again.
    """

    root: str | None = None
    known_id: str | None = None

    def __init__(self, *, patience_s: float = 0.0) -> None:
        self._patience_s = patience_s

    def marker(self) -> str | None:
        """See Blobs."""
        return None

    def mark(self, storage_id: str) -> None:
        """See Blobs."""

    def claim(self, run_id: str) -> None:
        """See Blobs."""

    def keep(self, _name: str, blob: bytes) -> bytes:
        """See Blobs."""
        return blob

    def load(self, name: str, held: bytes) -> bytes:
        """See Blobs."""
        reference = Reference.decode(held)
        if reference is None:
            return held
        # Imported here, as most processes without a storage read no files.
        from fanout.stores.blobs.files import load_elsewhere

        return load_elsewhere(name, reference, patience_s=self._patience_s)

    def drop(self, name: str, held: bytes) -> None:
        """See Blobs."""

    def drop_all(self, folder: str) -> bool:  # noqa: ARG002 - there is none
        """See Blobs."""
        return True
