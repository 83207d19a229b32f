"""The names of documents by ``id_column``: a row is called by its value in that column."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from fanout.core.cells import cell_text
from fanout.core.errors import SpecError
from fanout.inputs.documents.notices import Notice
from fanout.inputs.prompts import near_hint

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from fanout.core.records import Document
    from fanout.inputs.documents.notices import Notify

__all__ = ["DocumentNames"]

# The ids that are looked at for repetitions; the memory for more would grow with the input.
_COMPARED_IDS = 100_000


class DocumentNames:
    """Calls documents by the value of a column; a peculiarity is reported once.

    Args:
        column: The column; None leaves all names as they are.
        notify: Receives a notice of the first document without an id, and of the first id that is
            there again.
    """

    def __init__(self, column: str | None, notify: Notify) -> None:
        self._column = column
        self._notify = notify
        self._reported: set[str] = set()
        # Until it is known that the column exists: without it, no document has an id.
        self._waiting: list[Notice] | None = []

    @property
    def columns(self) -> frozenset[str]:
        """The column, if there is one."""
        return frozenset() if self._column is None else frozenset({self._column})

    def require(self, columns: Collection[str]) -> None:
        """Check that the input has the column. Raises SpecError."""
        if self._column is not None and self._column not in columns:
            known = ", ".join(sorted(columns)) or "none"
            raise SpecError(
                f"there is no column {self._column!r};{near_hint(self._column, columns)} "
                f"known: {known}",
                field="id_column",
            )
        for notice in self._waiting or ():
            self._notify(notice)
        self._waiting = None

    def apply(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Return the documents under their names, lazily."""
        return iter(documents) if self._column is None else self._named(documents, self._column)

    def _named(self, documents: Iterable[Document], column: str) -> Iterator[Document]:
        seen: set[int] = set()
        for document in documents:
            name = cell_text(document.columns.get(column)).strip()
            if not name:
                if document.error is None:
                    self._report(
                        "missing",
                        f"{document.name} has no {column!r}: it, and any other like it, is called "
                        "by its place in the input",
                    )
                yield document
                continue
            key = hash(name)
            if key in seen:
                self._report(
                    "repeated",
                    f"the id {name!r} is there again ({document.name}): names of documents need "
                    f"not be unique, but {column!r} does not tell these apart",
                )
            elif len(seen) < _COMPARED_IDS:
                seen.add(key)
            yield _renamed(document, name)

    def _report(self, what: str, text: str) -> None:
        if what not in self._reported:
            self._reported.add(what)
            if self._waiting is None:
                self._notify(Notice(text=text))
            else:
                self._waiting.append(Notice(text=text))


def _renamed(document: Document, name: str) -> Document:
    """Return a document under another name; an error also names the place in the input."""
    if document.error is None:
        return msgspec.structs.replace(document, name=name)
    error = f"{document.error} ({document.name})"
    return msgspec.structs.replace(document, name=name, error=error)
