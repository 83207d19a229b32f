"""Tables as CSV, TSV and lines of JSON."""

from __future__ import annotations

import re
from typing import IO, TYPE_CHECKING, Any

import msgspec

from fanout.core.units import plural

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fanout.runs.tables.table import Table

__all__ = ["defused", "write_csv", "write_jsonl", "write_tsv"]

# What Excel and LibreOffice take for a formula; see OWASP, "CSV Injection".
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
# Empty, or with spaces at an end: some readers drop these, or take an empty text for a missing one.
_QUOTED_CSV = re.compile(r'[,"\r\n]|\A\s|\s\Z|\A\Z')
_QUOTED_TSV = re.compile(r'[\t"\r\n]|\A\s|\s\Z|\A\Z')
_NUMBER = re.compile(r"[-+]?[0-9.,]*[0-9](?:[eE][-+]?[0-9]{1,3})?%?", re.ASCII)


def defused(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula: with an apostrophe if it might."""
    if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text):
        return f"'{text}"
    return text


def write_csv(table: Table, file: IO[bytes]) -> list[str]:
    """Write a table as CSV in UTF-8, without a byte order mark.

    A missing cell has no quotes, and an empty text has: readers that can tell them apart do.

    Returns:
        How many cells are not written as they are, as they look like formulas.
    """
    return _write_separated(table, file, ",", _QUOTED_CSV)


def write_tsv(table: Table, file: IO[bytes]) -> list[str]:
    """Write a table as CSV whose cells are separated by tabs: see ``write_csv``."""
    return _write_separated(table, file, "\t", _QUOTED_TSV)


def _write_separated(
    table: Table, file: IO[bytes], delimiter: str, quoted: re.Pattern[str]
) -> list[str]:
    cells = _Cells(quoted)
    shown = cells.shown
    names = delimiter.join(shown(column.name) for column in table.columns)
    rows = (delimiter.join(map(shown, row)) for row in table.typed_rows())
    file.write(f"{names}\n".encode())
    _write_lines(file, (row.encode() for row in rows))
    return cells.losses()


class _Cells:
    """Shows cells as the text between two delimiters; counts those that had to be changed."""

    def __init__(self, quoted: re.Pattern[str]) -> None:
        self._needs_quotes = quoted.search
        self._defused = 0

    def shown(self, cell: Any) -> str:
        """Return the text of a cell."""
        if cell is None:
            return ""
        if type(cell) is not str:
            return repr(cell) if type(cell) is not bool else "true" if cell else "false"
        text = defused(cell)
        if text is not cell:
            self._defused += 1
        if self._needs_quotes(text):
            return '"' + text.replace('"', '""') + '"'
        return text

    def losses(self) -> list[str]:
        """Return how many cells were changed, for the user."""
        if not self._defused:
            return []
        cells = plural(self._defused, "cell", "cells")
        line = (
            f"{cells} got an apostrophe in front, as spreadsheets would take the text for a formula"
        )
        return [f"{line}; the other formats keep it as it is"]


def write_jsonl(table: Table, file: IO[bytes]) -> list[str]:
    """Write a table as lines of JSON: each has all columns, with the values as they came."""
    names = [column.name for column in table.columns]
    encode = msgspec.json.Encoder().encode
    rows = (encode(dict(zip(names, row, strict=True))) for row in table.rows())
    _write_lines(file, rows)
    return []


def _write_lines(file: IO[bytes], lines: Iterable[bytes]) -> None:
    for line in lines:
        file.write(line + b"\n")
