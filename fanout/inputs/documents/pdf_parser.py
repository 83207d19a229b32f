"""The parser of PDF, a library that kreuzberg unpacks to the folder of temporary files."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

__all__ = ["load_pdf_parser", "why_not_loaded"]

# Enough to be taken for a PDF: the library is loaded before it is found to be damaged.
_NO_PAGES = b"%PDF-1.4\n%%EOF"
_MIME = "application/pdf"
# What kreuzberg calls the file that it writes before it gives it its name, with the id of the process.
_PART = "libpdfium.tmp."
# No process unpacks for so long; what is older was left by one that was killed or had no room.
_PART_LIVES_S = 3_600
_UNPACKING = ("pdfium initialization failed", "bundled pdfium")


def load_pdf_parser() -> None:
    """Unpack the library if no process has done so, and load it.

    A process that parses does so before it limits itself: the library has 8 MB, which is more than
    the process may write later. If it cannot be loaded, each PDF fails with the reason.
    """
    import kreuzberg

    # It always fails: either as damaged, or because the library cannot be loaded.
    with suppress(kreuzberg.KreuzbergError, RuntimeError):
        kreuzberg.extract_bytes_sync(_NO_PAGES, _MIME)
    _remove_parts()


def why_not_loaded(message: str) -> str | None:
    """Return what to do if an error of kreuzberg says that the library is not loaded; None if it is."""
    if not any(words in message.lower() for words in _UNPACKING):
        return None
    return (
        f"the library that reads PDF cannot be unpacked to {_folder()}: it needs 8 MB there, and the "
        "right to write and to load a library; make room, or set TMPDIR to another folder"
    )


def _folder() -> Path:
    return Path(os.environ.get("TMPDIR") or "/tmp", "kreuzberg-pdfium")  # noqa: S108 - kreuzberg's own


def _remove_parts() -> None:
    """Remove what is left of attempts to unpack that failed, here or in processes that were killed."""
    oldest = time.time() - _PART_LIVES_S
    for part in _folder().glob(f"{_PART}*"):
        # Another user's, or removed by another process.
        with suppress(OSError):
            if part.name == f"{_PART}{os.getpid()}" or part.stat().st_mtime < oldest:
                part.unlink()
