"""Documents that are ZIP archives of XML, written anew where kreuzberg would leave text out."""

from __future__ import annotations

import io
import re
import zipfile
from typing import TYPE_CHECKING, BinaryIO

from fanout.inputs.documents.document_formats import zip_errors
from fanout.inputs.documents.web_pages import MOST_DEPTH, repaired, scan, with_all_parts

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["REWRITTEN", "rewritten"]

REWRITTEN = frozenset({"epub", "odt", "pptx"})
# Larger ones are left as they are: kreuzberg has limits of its own.
_MOST_BYTES = 100_000_000
_MIMETYPE = "mimetype"
_CONTENT = "content.xml"
# With these, kreuzberg marks the first slide only.
_NOTES = "ppt/notesSlides/"
_PAGES = (".xhtml", ".html", ".htm")
# What a document's text may need.
_TEXTS = (*_PAGES, ".xml", ".rels", ".opf", ".ncx")
# kreuzberg passes over elements in these, and over white space in a paragraph that is an element.
_ODF = re.compile(
    r"<(?P<end>/?)(?P<name>text:(?:span|a|s|tab|p|h|ruby|ruby-base|ruby-text|list|list-item|list-header"
    r"|table-of-content|illustration-index|table-index|object-index|user-index|alphabetical-index"
    r"|bibliography|index-body|index-title)|table:table-cell)(?=[\s/>])(?P<rest>[^<>]*)>"
)
_SPACES = re.compile(r'text:c="(\d{1,3})"')
_CELL = "table:table-cell"
_BLOCKS = frozenset({"text:p", "text:h"})
_LISTS = frozenset({"text:list", "text:list-item", "text:list-header"})
_KEPT = _BLOCKS | _LISTS | {_CELL}
_SPACE = frozenset({"text:s", "text:tab"})


def rewritten(key: str, file: BinaryIO) -> bytes | None:
    """Return a document for kreuzberg; None if the file itself will do.

    That of a PowerPoint file is without its notes.
    """
    file.seek(0)
    try:
        with zipfile.ZipFile(file) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _MOST_BYTES:
                return None
            every = archive.namelist()
            names = [one for one in every if not one.startswith(_NOTES)]
            parts = dict(_parts(key, archive))
            return _packed(names, parts, archive) if parts or len(names) < len(every) else None
    except _damages():
        # What is damaged is left to kreuzberg.
        return None


def _parts(key: str, archive: zipfile.ZipFile) -> Iterator[tuple[str, str]]:
    """Yield the parts that must change, as they should be."""
    for name in archive.namelist():
        if key == "odt" and name == _CONTENT:
            yield name, _flat_content(archive.read(name).decode())
        elif key == "epub" and name.lower().endswith(_PAGES):
            page = archive.read(name).decode()
            with_all = with_all_parts(page)
            if scan(with_all).depth > MOST_DEPTH:
                yield name, repaired(with_all)
            elif with_all != page:
                yield name, with_all


def _packed(names: list[str], parts: dict[str, str], archive: zipfile.ZipFile) -> bytes:
    """Return the archive with other parts, and without damaged ones that have no text."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as copy:
        for name in sorted(names, key=lambda one: one != _MIMETYPE):
            try:
                data = parts[name] if name in parts else archive.read(name)
            except _damages():
                if name.lower().endswith(_TEXTS):
                    raise
                continue
            copy.writestr(name, data)
    return made.getvalue()


def _damages() -> tuple[type[Exception], ...]:
    return (*zip_errors(), OSError, ValueError)


def _flat_content(xml: str) -> str:
    """Return the content of an OpenDocument text without elements whose text would be lost."""
    cells = 0

    def flat(match: re.Match[str]) -> str:
        nonlocal cells
        name, is_end = match["name"], bool(match["end"])
        if name == _CELL and not match["rest"].endswith("/"):
            cells += -1 if is_end else 1
        if name in _BLOCKS and is_end and cells:
            return f" {match[0]}"
        if name in _LISTS and cells:
            return ""
        if name == "text:list-header":
            return f"<{match['end']}text:list-item>"
        return match[0] if name in _KEPT else _in_place(name, match["rest"], is_end=is_end)

    return _ODF.sub(flat, xml)


def _in_place(name: str, rest: str, *, is_end: bool) -> str:
    """Return the text in place of a tag that is left out."""
    if name == "text:ruby-text":
        return ")" if is_end else " ("
    if is_end or name not in _SPACE:
        return ""
    count = _SPACES.search(rest)
    return " " * int(count[1]) if count else " "
