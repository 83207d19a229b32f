"""Files of documents, such as PDF and Word: they are parsed in advance, and read in order."""

from __future__ import annotations

from collections import deque
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from fanout.core.errors import InputError
from fanout.inputs.documents.parsed import Parsed, Request
from fanout.inputs.documents.rows import checked, faulty

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from fanout.core.records import Document
    from fanout.inputs.documents.files import InputFile
    from fanout.inputs.documents.parsing import ParserPool
    from fanout.inputs.documents.reading import Reading

__all__ = ["DocumentFiles", "document_of", "request_of"]


class DocumentFiles:
    """The files of one pass through an input that are parsed.

    Args:
        files: Those that are known to be documents, in order.
        reading: How the job reads its inputs.
        notes: Is called with each file whose text is read as it is, and with what its name says.
    """

    def __init__(
        self, files: Iterable[InputFile], reading: Reading, *, notes: Callable[[str, str], None]
    ) -> None:
        self._reading = reading
        self._files = files
        self._notes = notes
        self._pool: ParserPool | None = None
        self._in_order: Iterator[Parsed] | None = None
        # Of files from elsewhere, while they are parsed.
        self._copies: deque[ExitStack] = deque()

    def next(self, name: str) -> Parsed:
        """Return the next of the files, which has this name. Raises InputError."""
        if self._in_order is None:
            self._in_order = self._parsers().parse_all(map(self._request, self._files))
        parsed = next(self._in_order)
        self._copies.popleft().close()
        if parsed.instead_of and parsed.error is None:
            self._notes(name, parsed.instead_of)
        return parsed

    def other(self, file: InputFile) -> Parsed:
        """Return a file of which only its content says that it is a document. Raises InputError."""
        with self._reading.on_disk(file) as path:
            return self.at(path, file.name)

    def at(self, path: Path, name: str) -> Parsed:
        """Return the document in a file of this machine. Raises InputError."""
        return self._parsers().parse(request_of(path, name, self._reading))

    def _request(self, file: InputFile) -> Request | Parsed:
        """Return the request for a file, or the reason why there is none."""
        copy = ExitStack()
        self._copies.append(copy)
        try:
            path = copy.enter_context(self._reading.on_disk(file))
        except FileNotFoundError:
            return Parsed(is_gone=True)
        except OSError as error:
            return Parsed(error=f"cannot be read: {error.strerror or error}")
        return request_of(path, file.name, self._reading)

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.close()
        for copy in self._copies:
            copy.close()

    def _parsers(self) -> ParserPool:
        from fanout.inputs.documents.parsing import ParserPool

        self._pool = self._pool or ParserPool()
        return self._pool


def request_of(path: Path, name: str, reading: Reading) -> Request:
    """Return the request for a file."""
    return Request(
        path=str(path.absolute()),
        name=name,
        max_bytes=reading.max_bytes,
        timeout_s=reading.parse_timeout_s,
        encoding=reading.encoding,
    )


def document_of(name: str, index: int, parsed: Parsed, max_bytes: int) -> Document:
    """Return the document that was made of a file. Raises InputError if the file is gone."""
    if parsed.is_gone:
        raise InputError("was there, and is gone now", source=name)
    if parsed.error is not None:
        return faulty(name, index, parsed.error)
    document = checked(name, index, parsed.text, max_bytes)
    if document.error is not None:
        return document
    return msgspec.structs.replace(document, pages=parsed.pages, headings=parsed.headings)
