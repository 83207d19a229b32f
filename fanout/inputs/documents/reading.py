"""What the readers of all formats share: how a job reads its inputs, and what the check of a file finds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from fanout.core.errors import InputError
from fanout.inputs.documents.rows import faulty

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fanout.core.records import Document
    from fanout.inputs.documents.files import InputFile
    from fanout.inputs.documents.past_runs import OpenRun

__all__ = ["Checked", "Reading", "streamed"]


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """How a job reads its inputs.

    Attributes:
        text_column: The column of rows that holds the text; None selects the default.
        delimiter: The character between the cells of a table; None detects it.
        max_bytes: The size above which a document is refused.
        base: The folder of relative inputs.
        open_run: Opens another run as an input; None where runs cannot be read.
    """

    text_column: str | None = None
    delimiter: str | None = None
    max_bytes: int
    base: Path = Path()
    open_run: OpenRun | None = None

    def open(self, file: InputFile) -> BinaryIO:
        """Open a file at its beginning. Raises OSError."""
        return (self.base / file.name).open("rb")


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """What the check of a file found, before any file is read.

    Attributes:
        header: The columns of all its rows; None if they are known only by reading them.
        fault: Why the file cannot be read at all, or None.
        left_out: Which of its parts are left out, for a warning; None if none is.
    """

    header: tuple[str, ...] | None = None
    fault: str | None = None
    left_out: str | None = None


def streamed(
    read: Callable[[InputFile, BinaryIO, Any, Reading, Iterator[int]], Iterator[Document]],
) -> Callable[[InputFile, Any, Reading, Iterator[int]], Iterator[Document]]:
    """Return the reader of a format that is read from an open file, from its beginning to its end.

    A file that cannot be opened is one faulty document.

    Raises:
        InputError: While it is read: the file disappeared, shrank or could not be read to its end.
    """

    def documents(
        file: InputFile, checked: Any, reading: Reading, indices: Iterator[int]
    ) -> Iterator[Document]:
        name = file.name
        try:
            opened = reading.open(file)
        except FileNotFoundError:
            raise InputError("was there, and is gone now", source=name) from None
        except OSError as error:
            yield faulty(name, next(indices), f"cannot be read: {error.strerror or error}")
            return
        try:
            with opened:
                size = os.fstat(opened.fileno()).st_size
                yield from read(file, opened, checked, reading, indices)
                _require_whole(name, opened, size)
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(f"broke while it was read: {reason}", source=name) from None

    return documents


def _require_whole(name: str, file: BinaryIO, size: int) -> None:
    """Raise InputError if a file has shrunk, so that a part of it does not pass for the whole."""
    left = min(file.tell(), os.fstat(file.fileno()).st_size)
    if left < size:
        raise InputError(
            f"shrank while it was read: it had {size:,} bytes, and {left:,} were left", source=name
        )
