"""The ZIP archive of an Excel workbook, whose parts have limits of size and time.

A part is a sheet if the workbook says so. Any other part that openpyxl opens, it reads as a whole.
"""

from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from fanout.inputs.documents.deadlines import Deadline

__all__ = ["BrokenError", "load_book"]

# The largest parts that are read as a whole, such as the texts that sheets share; and the largest
# sheet, which is not.
_MOST_WHOLE_BYTES = 400_000_000
_MOST_SHEET_BYTES = 8_000_000_000
# The largest row of a sheet.
_MOST_ROW_BYTES = 64_000_000
# Larger parts that were compressed more than this are no data.
_SUSPECT_BYTES = 50_000_000
_MOST_RATIO = 150
_NO_SHEET = b"<worksheet/>"


class BrokenError(Exception):
    """A workbook cannot be read; the message says why."""


def load_book(file: BinaryIO, deadline: Deadline) -> Any:
    """Return the workbook of openpyxl in a file. Its sheets are read later, as ``Part``.

    Raises:
        BrokenError: It would need too much memory or time.
        Exception: It is no workbook; openpyxl raises errors of any class.
    """
    from openpyxl.reader.excel import ExcelReader

    class Reader(ExcelReader):
        def read_worksheets(self) -> None:
            found = [rel for _, rel in self.parser.find_sheets() if "chartsheet" not in rel.Type]
            archive.sheets = frozenset(rel.target for rel in found)
            super().read_worksheets()

    archive = _Archive(file, deadline)
    reader = Reader(file, read_only=True, data_only=True, keep_links=False)
    reader.archive = archive
    reader.read()
    archive.is_loaded = True
    return reader.wb


class _Archive(zipfile.ZipFile):
    """The archive of a workbook.

    Attributes:
        sheets: The parts that are sheets, once they are known.
        is_loaded: Whether all but the sheets has been read.
    """

    def __init__(self, file: BinaryIO, deadline: Deadline) -> None:
        super().__init__(file)
        self.sheets = frozenset[str]()
        self.is_loaded = False
        self._deadline = deadline
        self._whole = 0

    def open(self, name: str | zipfile.ZipInfo, *_: Any, **__: Any) -> Any:
        """Open a part. Raises BrokenError if it is too large."""
        part = name if isinstance(name, zipfile.ZipInfo) else self.getinfo(name)
        is_sheet = part.filename in self.sheets
        if is_sheet and not self.is_loaded:
            # openpyxl would read a sheet that does not tell its dimensions to its end.
            return io.BytesIO(_NO_SHEET)
        size = part.file_size
        self._whole += 0 if is_sheet else size
        if size > _SUSPECT_BYTES and size > _MOST_RATIO * max(1, part.compress_size):
            raise BrokenError(
                f"its part {part.filename} unpacks {part.compress_size:,} bytes to {size:,}: it is "
                "a bomb and no data"
            )
        if size > _MOST_SHEET_BYTES or self._whole > _MOST_WHOLE_BYTES:
            raise BrokenError(
                f"its part {part.filename} is too large ({max(size, self._whole):,} bytes unpacked): "
                "save it as .csv or .parquet"
            )
        return Part(super().open(part), self._deadline)


class Part(io.BufferedIOBase):
    """A part of a workbook that is read in pieces, with a limit of what is read for one row."""

    def __init__(self, file: Any, deadline: Deadline) -> None:
        super().__init__()
        self._file = file
        self._deadline = deadline
        self._since: int | None = None

    def next_row(self, *, has_cells: bool) -> None:
        """Begin the next row of a sheet; only one that has cells was worth the time."""
        self._since = 0
        if has_cells:
            self._deadline.restart()

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """Read a piece. Raises BrokenError if the row is too large, or has taken too long."""
        if self._deadline.has_passed:
            raise BrokenError(self._deadline.reason)
        data: bytes = self._file.read(size)
        if self._since is not None:
            self._since += len(data)
            if self._since > _MOST_ROW_BYTES:
                raise BrokenError(f"it has a row of more than {_MOST_ROW_BYTES // 10**6} MB")
        return data

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
