"""Lone surrogates in the texts of documents: UTF-8, and so JSON on the wire, has none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.core.records import Document

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fanout.core.cells import Cell

__all__ = ["encodable"]

_NESTED = frozenset({str, list, dict})


def encodable(document: Document) -> Document:
    """Return the document, or a faulty one if its texts have a lone surrogate."""
    columns = document.columns
    try:
        document.name.encode()
        document.text.encode()
        for column in columns:
            column.encode()
        for text in _texts(columns.values()):
            text.encode()
    except UnicodeEncodeError as error:
        return Document(
            name=document.name.encode("utf-8", "replace").decode(),
            index=document.index,
            error=f"it has a lone surrogate (half a character) at offset {error.start}",
        )
    return document


def _texts(cells: Iterable[Cell]) -> Iterator[str]:
    """Yield the strings in cells, those in lists and mappings too."""
    left = [cells]
    while left:
        for cell in left.pop():
            if isinstance(cell, str):
                yield cell
            elif isinstance(cell, dict):
                left += [cell.keys(), cell.values()]
            # A list of numbers, such as an embedding, may be long.
            elif isinstance(cell, list) and not _NESTED.isdisjoint(map(type, cell)):
                left.append(cell)
