"""Documents from objects in memory: strings, rows, documents, and tables of other libraries."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from fanout.core.cells import is_missing
from fanout.core.errors import InputError
from fanout.core.records import Document
from fanout.inputs.documents.frames import (
    ArrowArray,
    ArrowStream,
    Frame,
    frame_of,
    is_frame,
    lazy_frame_hint,
)
from fanout.inputs.documents.rows import (
    DEFAULT_TEXT_COLUMN,
    checked,
    document_of_row,
    faulty,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["AsyncChunks", "Chunks", "Items", "from_strings"]

_ONE = {
    "str": "one string: put it in a list",
    "Document": "one Document: put it in a list",
}

Item: TypeAlias = str | Mapping[str, object] | Document
# What callers give as ``chunks``; see Items.
Chunks: TypeAlias = Iterable[Item] | Mapping[str, Item] | ArrowStream | ArrowArray
AsyncChunks: TypeAlias = Chunks | AsyncIterable[Item]


class Items:
    """The items that a caller gives as ``chunks``, checked at once and read lazily.

    A list, a generator or another iterable of texts, rows or documents; a mapping of names to them; or
    a table or a column of pandas, polars, pyarrow, ``datasets``, or of any library with the Arrow
    PyCapsule interface. In a table, each row is an item; so is each text of a column.

    Args:
        items: The items.
        text_column: The column of a row that holds the text; None is ``text``, or the only column
            of a table.
        max_bytes: The size in UTF-8 bytes above which a document is refused.

    Attributes:
        is_lasting: Whether they can be read again.
        has_rows: Whether there may be rows; an iterator is not examined.

    Raises:
        InputError: They are one string, one row, a path, or a table that cannot be used.
    """

    def __init__(self, items: Any, *, text_column: str | None, max_bytes: int) -> None:
        if reason := _no_list(items):
            raise InputError(reason)
        self._items = items
        self._given_column = text_column
        self._max_bytes = max_bytes
        if isinstance(items, Mapping):
            _require_no_row(items, text_column or DEFAULT_TEXT_COLUMN)
        self._frame = None if isinstance(items, Mapping) else frame_of(items)
        self._column = _text_column(self._frame, text_column)
        is_iterator = hasattr(items, "__next__")
        self.is_lasting = not is_iterator if self._frame is None else self._frame.is_lasting
        self.has_rows = _has_rows(items)

    def documents(self) -> Iterator[Document]:
        """Yield a document for each item, named ``item 1`` and so on, or by its key.

        An item that cannot be used becomes a document with the reason in its ``error``.
        """
        column, max_bytes = self._column, self._max_bytes
        if isinstance(self._items, Mapping):
            for index, (name, item) in enumerate(self._items.items()):
                yield _document(item, str(name), index, column, max_bytes)
            return
        documents = (
            _document(item, f"item {index + 1}", index, column, max_bytes)
            for index, item in enumerate(self._rows())
        )
        if column == (self._given_column or DEFAULT_TEXT_COLUMN):
            yield from documents
        else:
            # The only column of a table: the run knows its name from nowhere else.
            yield from (msgspec.structs.replace(one, text_column=column) for one in documents)

    def _rows(self) -> Iterable[Any]:
        frame, self._frame = self._frame, None
        frame = frame or frame_of(self._items)
        return self._items if frame is None else frame.rows


def from_strings(
    items: Chunks, *, text_column: str | None = None, max_bytes: int
) -> Iterator[Document]:
    """Yield the documents of ``Items``, lazily. Raises InputError at once if they are none."""
    return Items(items, text_column=text_column, max_bytes=max_bytes).documents()


def _no_list(items: Any) -> str | None:
    """Return why an argument is not a list of items, or None."""
    kind = type(items).__name__
    if isinstance(items, (str, bytes, bytearray, memoryview, PathLike, Document)):
        reason = _ONE.get(kind, "bytes: decode them, and put them in a list")
        if isinstance(items, PathLike):
            reason = f"a path: give files as inputs=[{str(items)!r}]"
        return f"chunks must be a list of strings, not {reason}"
    if hint := lazy_frame_hint(items):
        return f"chunks is a {kind}, which has no rows yet: {hint}"
    if hasattr(items, "__aiter__"):
        return "chunks is an async iterator, which only arun and astream take"
    if not isinstance(items, Iterable) and not is_frame(items):
        return f"chunks must be a list of strings or rows, not {kind}"
    return None


def _require_no_row(items: Mapping[Any, Any], column: str) -> None:
    """Raise InputError for one row, or for columns: a mapping has a text for each name."""
    if column in items:
        raise InputError(
            f"chunks must be a list of rows, not one {type(items).__name__} with the column "
            f"{column!r}: put it in a list"
        )
    for name, value in items.items():
        if isinstance(value, (list, tuple)) or is_frame(value):
            kind = type(value).__name__
            raise InputError(
                f"chunks is a {type(items).__name__} whose {str(name)!r} is a {kind}: a mapping "
                "has a name and its text for each document; give one list or table"
            )


def _text_column(frame: Frame | None, given: str | None) -> str:
    """Return the column of the text. Raises InputError if a table does not have it."""
    columns = None if frame is None else frame.columns
    if not columns:
        return given or DEFAULT_TEXT_COLUMN
    column = given or (columns[0] if len(columns) == 1 else DEFAULT_TEXT_COLUMN)
    if column not in columns:
        raise InputError(
            f"chunks: there is no column {column!r} (it has: {', '.join(columns)}); name one with "
            "text_column"
        )
    return column


def _has_rows(items: Any) -> bool:
    if isinstance(items, Mapping):
        items = list(items.values())
    is_list = isinstance(items, (list, tuple))
    return not (is_list and all(isinstance(one, (str, Document)) for one in items))


def _document(item: Any, name: str, index: int, column: str, max_bytes: int) -> Document:
    if isinstance(item, str):
        return checked(name, index, item, max_bytes)
    if isinstance(item, Document):
        one = msgspec.structs.replace(item, index=index)
        fault = one.error or checked(one.name, index, one.text, max_bytes).error
        return one if fault is None else msgspec.structs.replace(one, text="", error=fault)
    if isinstance(item, Mapping):
        return document_of_row(name, index, item, column, max_bytes)
    if is_missing(item):
        return faulty(name, index, f"it is missing ({item})")
    if isinstance(item, PathLike):
        return faulty(name, index, "it is a path, not a string: give files as inputs=[...]")
    kind = type(item).__name__
    return faulty(name, index, f"it must be a string or a mapping, not {kind}")
