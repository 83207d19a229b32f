"""Tables as XLSX: one sheet, written row by row (ECMA-376, part 1: SpreadsheetML)."""

from __future__ import annotations

import re
from typing import IO, TYPE_CHECKING, Any
from xml.sax.saxutils import escape
from zipfile import ZIP_DEFLATED, ZipFile

from fanout.core.units import plural
from fanout.runs.tables.text_files import defused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.runs.tables.table import Table

__all__ = ["MOST_XLSX_COLUMNS", "MOST_XLSX_ROWS", "write_xlsx"]

# The specification's limits of Excel; one row is the header.
MOST_XLSX_ROWS = 1_048_575
MOST_XLSX_COLUMNS = 16_384
# In UTF-16 code units.
_MOST_CHARS = 32_767
# Excel has 15 digits of a number.
_MOST_DIGITS = 10**15
# Characters that XML 1.0 does not have.
_ILLEGAL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]")
# Excel reads this as the character with the number.
_ESCAPE = re.compile("_(?=x[0-9A-Fa-f]{4}_)")
_LETTERS = 26
# A part of an archive that may be longer needs another kind of header, which Excel warns of.
_ZIP32 = 2**31 - 1
_CELL_BYTES = 70
_LEVEL = 5

_XML = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
_MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_SHEET_TYPE = "application/vnd.openxmlformats-officedocument.spreadsheetml"
_SHEET = "xl/worksheets/sheet1.xml"
_PARTS = {
    "[Content_Types].xml": (
        f'<Types xmlns="{_PACKAGE}/content-types">'
        '<Default Extension="rels" '
        'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/xl/workbook.xml" ContentType="{_SHEET_TYPE}.sheet.main+xml"/>'
        f'<Override PartName="/{_SHEET}" ContentType="{_SHEET_TYPE}.worksheet+xml"/>'
        f'<Override PartName="/xl/styles.xml" ContentType="{_SHEET_TYPE}.styles+xml"/>'
        "</Types>"
    ),
    "_rels/.rels": (
        f'<Relationships xmlns="{_PACKAGE}/relationships">'
        f'<Relationship Id="rId1" Type="{_OFFICE}/officeDocument" Target="xl/workbook.xml"/>'
        "</Relationships>"
    ),
    "xl/workbook.xml": (
        f'<workbook xmlns="{_MAIN}" xmlns:r="{_OFFICE}">'
        '<sheets><sheet name="outputs" sheetId="1" r:id="rId1"/></sheets></workbook>'
    ),
    "xl/_rels/workbook.xml.rels": (
        f'<Relationships xmlns="{_PACKAGE}/relationships">'
        f'<Relationship Id="rId1" Type="{_OFFICE}/worksheet" Target="worksheets/sheet1.xml"/>'
        f'<Relationship Id="rId2" Type="{_OFFICE}/styles" Target="styles.xml"/>'
        "</Relationships>"
    ),
    # Style 1 is that of a text that looks like a formula: it stays text when somebody edits it.
    "xl/styles.xml": (
        f'<styleSheet xmlns="{_MAIN}">'
        '<fonts count="1"><font><sz val="11"/><name val="Calibri"/></font></fonts>'
        '<fills count="2"><fill><patternFill patternType="none"/></fill>'
        '<fill><patternFill patternType="gray125"/></fill></fills>'
        '<borders count="1"><border><left/><right/><top/><bottom/><diagonal/></border></borders>'
        '<cellStyleXfs count="1"><xf numFmtId="0" fontId="0" fillId="0" borderId="0"/></cellStyleXfs>'
        '<cellXfs count="2"><xf numFmtId="0" fontId="0" fillId="0" borderId="0" xfId="0"/>'
        '<xf numFmtId="0" fontId="0" fillId="0" borderId="0" xfId="0" quotePrefix="1"/></cellXfs>'
        '<cellStyles count="1"><cellStyle name="Normal" xfId="0" builtinId="0"/></cellStyles>'
        "</styleSheet>"
    ),
}
# The header stays in sight.
_BEGIN = (
    '<sheetViews><sheetView workbookViewId="0">'
    '<pane ySplit="1" topLeftCell="A2" activePane="bottomLeft" state="frozen"/>'
    "</sheetView></sheetViews><sheetData>"
)
# A text of digits, such as 007, is meant to be text: Excel need not mark it.
_END = (
    "</sheetData><ignoredErrors>"
    '<ignoredError sqref="A1:XFD1048576" numberStoredAsText="1"/></ignoredErrors></worksheet>'
)


def write_xlsx(table: Table, file: IO[bytes]) -> list[str]:
    """Write a table as the only sheet of an XLSX workbook.

    A text is a text cell, and never a formula. A number of more than 15 digits is text, too, as
    Excel would round it.

    Returns:
        What the cells have lost: text beyond 32,767 characters, and characters that XML lacks.
    """
    try:
        is_long = table.count * len(table.columns) * _CELL_BYTES > _ZIP32
        return _write(table, file, is_long=is_long)
    except RuntimeError:
        # The sheet has turned out to be longer than a plain archive can hold.
        file.seek(0)
        file.truncate()
        return _write(table, file, is_long=True)


def _write(table: Table, file: IO[bytes], *, is_long: bool) -> list[str]:
    rows = _Rows([column.name for column in table.columns])
    with ZipFile(file, "w", ZIP_DEFLATED, compresslevel=_LEVEL) as archive:
        for name, text in _PARTS.items():
            archive.writestr(name, _XML + text)
        with archive.open(_SHEET, "w", force_zip64=is_long) as sheet:
            sheet.write((_XML + rows.opening(table.count) + _BEGIN).encode())
            for row in rows.header():
                sheet.write(row.encode())
            for row in rows.of(table):
                sheet.write(row.encode())
            sheet.write(_END.encode())
    return rows.losses()


class _Rows:
    """The rows of a sheet as XML; counts what their cells lose."""

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self._letters = [_letters(position) for position in range(len(names))]
        self._cut = 0
        self._replaced = 0

    def opening(self, count: int) -> str:
        """Return the beginning of a sheet with so many rows below its header."""
        last = f"{self._letters[-1]}{count + 1}"
        return f'<worksheet xmlns="{_MAIN}"><dimension ref="A1:{last}"/>'

    def header(self) -> Iterator[str]:
        yield self._row(1, self._names)

    def of(self, table: Table) -> Iterator[str]:
        for number, row in enumerate(table.typed_rows(), 2):
            yield self._row(number, row)

    def _row(self, number: int, cells: list[Any]) -> str:
        parts = [f'<row r="{number}">']
        for letters, cell in zip(self._letters, cells, strict=True):
            if cell is not None:
                parts.append(self._cell(f"{letters}{number}", cell))
        parts.append("</row>")
        return "".join(parts)

    def _cell(self, at: str, cell: Any) -> str:
        kind = type(cell)
        if kind is bool:
            return f'<c r="{at}" t="b"><v>{cell:d}</v></c>'
        if kind is float or (kind is int and -_MOST_DIGITS < cell < _MOST_DIGITS):
            return f'<c r="{at}"><v>{cell!r}</v></c>'
        text = str(cell)
        style = ' s="1"' if defused(text) is not text else ""
        return (
            f'<c r="{at}"{style} t="inlineStr"><is><t xml:space="preserve">{self._text(text)}'
            "</t></is></c>"
        )

    def _text(self, text: str) -> str:
        if len(text) > _MOST_CHARS // 2:
            text = self._shortened(text)
        text, replaced = _ILLEGAL.subn("\ufffd", text)
        self._replaced += replaced > 0
        return _ESCAPE.sub("_x005F_", escape(text)).replace("\r", "&#13;")

    def _shortened(self, text: str) -> str:
        units = text.encode("utf-16-le", "surrogatepass")
        if len(units) <= 2 * _MOST_CHARS:
            return text
        self._cut += 1
        return units[: 2 * _MOST_CHARS].decode("utf-16-le", "ignore")

    def losses(self) -> list[str]:
        """Return what the cells have lost, for the user."""
        lines = []
        if self._cut:
            cells = plural(self._cut, "cell was", "cells were")
            lines.append(f"{cells} cut at {_MOST_CHARS:,} characters, the most that XLSX holds")
        if self._replaced:
            cells = plural(self._replaced, "cell has", "cells have")
            lines.append(f"{cells} characters that XLSX lacks: they became \ufffd")
        return lines


def _letters(position: int) -> str:
    """Return the letters of a column: A, ..., Z, AA, ..."""
    letters = ""
    position += 1
    while position:
        position, rest = divmod(position - 1, _LETTERS)
        letters = chr(ord("A") + rest) + letters
    return letters
