"""Documents from objects in memory: strings, rows, documents, and tables of other libraries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.core.cells import is_missing
from fanout.core.errors import InputError
from fanout.core.records import Document
from fanout.inputs.documents.rows import (
    DEFAULT_TEXT_COLUMN,
    checked,
    document_of_row,
    faulty,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["from_strings"]

_SLICE_ROWS = 1_000


def from_strings(
    items: Iterable[str | Mapping[str, object] | Document],
    *,
    text_column: str | None = None,
    max_bytes: int,
) -> Iterator[Document]:
    """Yield a document for each item, named ``item 1`` and so on, lazily.

    An item that cannot be used becomes a document with the reason in its ``error``.

    Args:
        items: Texts; rows, whose other columns prompts may use; documents; or a pandas or polars
            DataFrame, or a pyarrow table: each of its rows is an item.
        text_column: The column of a row that holds the text; None is ``text``.
        max_bytes: The size in UTF-8 bytes above which a document is refused.

    Raises:
        InputError: The items are not a list, for example one string, one mapping, or a path.
    """
    column = text_column or DEFAULT_TEXT_COLUMN
    # Check them at once, and not when the caller requests the first document.
    given = _items_of(items)
    return (_document(item, index, column, max_bytes) for index, item in enumerate(given))


def _items_of(items: Any) -> Iterable[Any]:
    """Return the items of a list, or the rows of a table. Raises InputError for anything else."""
    if reason := _no_list(items):
        raise InputError(reason)
    # Recognised by their methods: a check of their classes would import these libraries.
    if hasattr(items, "iter_rows") and hasattr(items, "columns"):
        rows: Iterable[Any] = items.iter_rows(named=True)
    elif hasattr(items, "iloc") and hasattr(items, "columns"):
        rows = _pandas_rows(items)
    elif hasattr(items, "to_batches"):
        rows = (row for batch in items.to_batches() for row in batch.to_pylist())
    elif hasattr(items, "to_pylist"):
        rows = items.to_pylist()
    else:
        try:
            rows = iter(items)
        except TypeError:
            kind = type(items).__name__
            raise InputError(f"chunks must be a list of strings or rows, not {kind}") from None
    return rows


def _no_list(items: Any) -> str | None:
    """Return why an argument is not a list of items, or None."""
    if isinstance(items, str):
        return "chunks must be a list of strings, not one string: put it in a list"
    if isinstance(items, (bytes, bytearray, memoryview)):
        return "chunks must be a list of strings, not bytes: decode them, and put them in a list"
    if isinstance(items, PathLike):
        return (
            f"chunks must be a list of strings, not a path: give files as inputs=[{str(items)!r}]"
        )
    if isinstance(items, (Mapping, Document)):
        kind = type(items).__name__
        return f"chunks must be a list of rows, not one {kind}: put it in a list"
    if hasattr(items, "collect") and hasattr(items, "collect_schema"):
        return "chunks is a lazy frame, which has no rows yet: give the result of its collect()"
    return None


def _pandas_rows(frame: Any) -> Iterator[Any]:
    # In slices: dictionaries of all rows would take many times the memory of the frame.
    for start in range(0, len(frame), _SLICE_ROWS):
        yield from frame.iloc[start : start + _SLICE_ROWS].to_dict("records")


def _document(item: Any, index: int, column: str, max_bytes: int) -> Document:
    name = f"item {index + 1}"
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
