"""Readers of JSON files as documents: one value on each line, or one array of values."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from fanout.inputs.documents.lines import BOM, read_lines
from fanout.inputs.documents.rows import checked, document_of_row, faulty, not_utf8, too_large

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.core.records import Document

__all__ = ["read_json", "read_jsonl"]

_PART_BYTES = 256_000
# Characters that can end a value, or begin a string that hides them.
_MARK = re.compile(rb'["{}\[\],]')
_STRING = re.compile(rb'["\\]')
_BLANK = b" \t\r\n"


def read_jsonl(
    name: str, file: BinaryIO, indices: Iterator[int], column: str, max_bytes: int
) -> Iterator[Document]:
    """Yield each line as a document, named ``path:line``, lazily."""
    for line in read_lines(file, max_bytes):
        where = f"{name}:{line.number}"
        if line.is_too_large:
            yield faulty(where, next(indices), too_large(line.size, max_bytes))
        elif line.data.strip():
            yield _document(where, next(indices), line.data, column, max_bytes, "a line")


def read_json(
    name: str, file: BinaryIO, indices: Iterator[int], column: str, max_bytes: int
) -> Iterator[Document]:
    """Yield each object or string of a JSON file as a document, named ``path#number``, lazily.

    These are the elements of an array, or the values of a file with one or more values.
    """
    for number, value in enumerate(_values(file, max_bytes), 1):
        where = f"{name}#{number}"
        if isinstance(value, str):
            yield faulty(where, next(indices), value)
        else:
            yield _document(where, next(indices), value, column, max_bytes, "an element")


def _document(
    where: str, index: int, data: bytes, column: str, max_bytes: int, what: str
) -> Document:
    try:
        value = _decoded(data)
    except ValueError as error:
        return faulty(where, index, str(error))
    if isinstance(value, str):
        return checked(where, index, value, max_bytes)
    if isinstance(value, dict):
        return document_of_row(where, index, value, column, max_bytes)
    kind = type(value).__name__
    return faulty(where, index, f"{what} must be a JSON object or string, not {kind}")


def _decoded(data: bytes) -> Any:
    """Return the value of JSON. Raises ValueError with the reason, which quotes no content."""
    try:
        return _DECODER.decode(data.decode())
    except UnicodeDecodeError as error:
        reason = not_utf8(error)
    except json.JSONDecodeError as error:
        reason = f"not valid JSON: {error.msg.removesuffix(' at')} at column {error.colno}"
    except RecursionError:
        reason = "not usable JSON: it is nested too deeply"
    except ValueError as error:
        reason = f"not usable JSON: {_reason(error)}"
    raise ValueError(reason)


def _reason(error: ValueError) -> str:
    # Python's own message for too many digits names a limit that a user cannot set.
    is_number = "integer string conversion" in str(error)
    return "it holds a number of more than 4,300 digits" if is_number else str(error)


def _no_constant(text: str) -> NoReturn:
    msg = f"{text} is not JSON"
    raise ValueError(msg)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        msg = f"it has the key {twice!r} more than once"
        raise ValueError(msg)
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant)


def _values(file: BinaryIO, max_bytes: int) -> Iterator[bytes | str]:
    """Yield the bytes of each value, in bounded memory.

    Brackets and strings alone decide where a value ends, so a fault in one value does not affect
    the others.
    """
    scan = _Scan(max_bytes)
    first = True
    for part in iter(lambda: file.read(_PART_BYTES), b""):
        yield from scan.feed(part.removeprefix(BOM) if first else part)
        first = False
    yield from scan.end()


class _Scan:
    """Finds where values begin and end in the parts of a file.

    Of a value that is too large, it keeps only the size.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._parts: list[bytes] = []
        self._size = 0
        self._depth = 0
        # 1 within the top-level array, whose elements are the values, else 0.
        self._base = 0
        self._in_string = False
        self._escaped = False

    def feed(self, part: bytes) -> Iterator[bytes | str]:
        """Yield the values that end in this part."""
        start = at = 0
        if self._escaped:
            self._escaped, at = False, 1
        while found := (_STRING if self._in_string else _MARK).search(part, at):
            at, mark = found.end(), found[0]
            if mark == b"\\":
                self._escaped = at == len(part)
                at += 1
            elif mark == b'"':
                self._in_string = not self._in_string
            elif (cut := self._cut(mark, part, start, at)) is not None:
                end, behind = cut
                yield from self._taken(part[start:end])
                start = behind
        self._add(part[start:])

    def _cut(self, mark: bytes, part: bytes, start: int, at: int) -> tuple[int, int] | None:
        """Return where a value ends at a mark, and where the next begins; None if none ends."""
        is_top = self._depth == self._base == 0
        if mark == b"[" and is_top and self._is_blank(part[start : at - 1]):
            self._base = self._depth = 1
            return at - 1, at
        if mark in b"{[":
            self._depth += 1
            return (at - 1, at - 1) if is_top else None
        if mark in b"}]" and self._depth > self._base:
            self._depth -= 1
            return (at, at) if self._depth == self._base == 0 else None
        if mark in b",]" and self._depth == self._base:
            if mark == b"]":
                self._base = self._depth = 0
            return at - 1, at
        return None

    def _is_blank(self, before: bytes) -> bool:
        return not before.strip(_BLANK) and self._size == 0

    def _add(self, part: bytes) -> None:
        self._size += len(part)
        if self._size <= self._max_bytes:
            self._parts.append(part)
        else:
            self._parts = []

    def _taken(self, rest: bytes) -> Iterator[bytes | str]:
        """Yield the value that ends with ``rest``, or its error as text; nothing if it is blank."""
        self._add(rest)
        data = b"".join(self._parts).strip(_BLANK)
        size, self._parts, self._size = self._size, [], 0
        if size > self._max_bytes:
            yield too_large(size, self._max_bytes)
        elif data:
            yield data

    def end(self) -> Iterator[bytes | str]:
        yield from self._taken(b"")
        if self._base or self._in_string:
            yield "not valid JSON: the file ends before its array does; it may have been cut"
