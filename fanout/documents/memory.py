"""Documents that the caller holds: strings, rows, or documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from fanout.documents.rows import DEFAULT_TEXT_COLUMN, checked, document_of_row
from fanout.errors import InputError
from fanout.runs import Document

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["from_strings"]


def from_strings(
    items: Iterable[str | Mapping[str, object] | Document],
    *,
    text_column: str | None = None,
    max_bytes: int,
) -> Iterator[Document]:
    """Yield a document for each item, named ``item 1`` and so on, lazily.

    Args:
        items: Texts; rows, whose other columns prompts may use; or documents.
        text_column: The column of a row that holds the text; ``text`` where it is None.
        max_bytes: The size in UTF-8 bytes above which a document is refused.

    Raises:
        InputError: The items are one string, or an item is of another type.
    """
    if isinstance(items, str):
        raise InputError("the input must be a list of strings, not one string: put it in a list")
    column = text_column or DEFAULT_TEXT_COLUMN
    for index, item in enumerate(items):
        yield _document(item, index, column, max_bytes)


def _document(item: object, index: int, column: str, max_bytes: int) -> Document:
    name = f"item {index + 1}"
    if isinstance(item, str):
        return checked(name, index, item, max_bytes)
    if isinstance(item, Document):
        return msgspec.structs.replace(item, index=index)
    if isinstance(item, Mapping):
        return document_of_row(name, index, item, column, max_bytes)
    kind = type(item).__name__
    raise InputError(f"{name} of the input must be a string or a mapping, not {kind}")
