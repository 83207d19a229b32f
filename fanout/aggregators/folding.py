"""Merges very many JSON values: what does not fit into memory is merged key by key, from files."""

from __future__ import annotations

import hashlib
from itertools import chain
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.core.json_text import identity
from fanout.system.external_sort import grouped

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fanout.system.external_sort import ExternalSorter, Pile, Scratch

__all__ = ["folded"]

# A value in its JSON, without spaces, behind its place among the others.
_Placed = tuple[tuple[int, ...], bytes]

# Values of so many bytes, in all, are merged in memory; as Python's objects they take some ten times that.
_SHARE_OF_MEMORY = 8
_VALUE_BYTES = 60
# A merged value of a key that is longer than this waits in a file.
_LONG_BYTES = 64_000
# No JSON is so many times longer than JSON of an equal value, as 1e300 has 301 digits.
_MOST_LONGER = 100
_DIGEST_BYTES = 16


def folded(values: Iterable[_Placed], scratch: Scratch) -> Iterator[bytes]:
    """Yield the JSON, in pieces, of what values are merged to: see Merge.

    Args:
        values: The values by their places, in order.
        scratch: What may be used, in memory and in files.
    """
    most = scratch.memory_bytes // _SHARE_OF_MEMORY
    some: list[_Placed] = []
    size = 0
    left = iter(values)
    for one in left:
        some.append(one)
        size += _VALUE_BYTES + len(one[1])
        if size > most and len(some) > 1:
            every = chain(some, left)
            # They are not kept while they are merged.
            del some, one
            yield from _folded_outside(every, scratch)
            return
    if len(some) == 1:
        yield some[0][1]
        return
    merged = Merged()
    for _, data in some:
        merged.take(msgspec.json.decode(data))
    yield msgspec.json.encode(merged.value())


def _folded_outside(values: Iterator[_Placed], scratch: Scratch) -> Iterator[bytes]:
    place, data = next(values)
    if _is_list(data):
        yield from _listed_all(chain([(place, data)], values))
        return
    ahead: _Placed | None
    if _is_object(data):
        with scratch.sorter() as fields:
            ahead = _take_objects((place, data), values, fields)
            so_far = _object(fields, scratch)
            yield from _all_of(so_far, ahead, values, scratch)
        return
    known = identity(msgspec.json.decode(data))
    ahead = next((one for one in values if not _is_same(one[1], known)), None)
    yield from _all_of(iter([data]), ahead, values, scratch)


def _all_of(
    so_far: Iterator[bytes], ahead: _Placed | None, values: Iterator[_Placed], scratch: Scratch
) -> Iterator[bytes]:
    """Yield a value that is merged, followed by those that cannot be merged with it."""
    if ahead is None:
        yield from so_far
        return
    rest = chain([ahead], values)
    if _is_list(ahead[1]):
        yield b"["
        yield from so_far
        for data in _elements(rest):
            yield b"," + data
        yield b"]"
        return
    yield from _distinct(so_far, rest, scratch)


def _is_list(data: bytes) -> bool:
    return data.startswith(b"[")


def _is_object(data: bytes) -> bool:
    return data.startswith(b"{")


def _is_same(data: bytes, known: bytes) -> bool:
    is_plain = not _is_list(data) and not _is_object(data)
    return is_plain and identity(msgspec.json.decode(data)) == known


def _elements(values: Iterable[_Placed]) -> Iterator[bytes]:
    """Yield values, and in place of lists their elements, joined by commas."""
    for _, data in values:
        own = data[1:-1] if _is_list(data) else data
        if own:
            yield own


def _listed_all(values: Iterable[_Placed]) -> Iterator[bytes]:
    mark = b"["
    for data in _elements(values):
        yield mark + data
        mark = b","
    yield b"]" if mark == b"," else b"[]"


def _take_objects(
    first: _Placed, values: Iterator[_Placed], fields: ExternalSorter
) -> _Placed | None:
    """Put the fields of objects, by their keys, into a sorter; return the first value that is none."""
    for place, data in chain([first], values):
        if not _is_object(data):
            return place, data
        for at, (key, value) in enumerate(_fields_of(data).items()):
            fields.add((key, *place, at), bytes(value))
    return None


def _object(fields: ExternalSorter, scratch: Scratch) -> Iterator[bytes]:
    """Yield an object with each key once, in the order of their first places."""
    scratch = scratch.beside(fields)
    with scratch.pile() as pile, scratch.sorter() as keys:
        for key, records in grouped(fields):
            values = ((one[0][1:], one[1][0]) for one in records)
            first = next(values)
            place = first[0]
            every = chain([first], values)
            del first
            start, short = _put_aside(folded(every, scratch.beside(keys)), pile)
            keys.add(place, msgspec.json.encode(key), short, start, pile.size)
        fields.close()
        mark = b"{"
        for _, (key, short, start, end) in keys:
            yield mark + key + b":" + short
            yield from pile.read(start, end)
            mark = b","
        yield b"}" if mark == b"," else b"{}"


def _put_aside(chunks: Iterator[bytes], pile: Pile) -> tuple[int, bytes]:
    """Return a short value; put a long one on a pile, and return where it begins there."""
    some: list[bytes] = []
    size = 0
    for chunk in chunks:
        some.append(chunk)
        size += len(chunk)
        if size > _LONG_BYTES:
            start = pile.size
            for one in chain(some, chunks):
                pile.add(one)
            return start, b""
    return pile.size, b"".join(some)


def _distinct(
    so_far: Iterator[bytes], values: Iterator[_Placed], scratch: Scratch
) -> Iterator[bytes]:
    """Yield a list of a value and of all others that differ, each once, in their order."""
    half = scratch.divided(2)
    with half.pile() as pile, half.sorter() as by_digest, half.sorter() as in_order:
        for chunk in so_far:
            pile.add(chunk)
        number = longest = 0
        for _, data in values:
            longest = max(longest, len(data))
            value = msgspec.json.decode(data)
            for one in value if isinstance(value, list) else [value]:
                by_digest.add((_digest(one), number), msgspec.json.encode(one))
                number += 1
        known = None
        if pile.size <= _MOST_LONGER * longest:
            known = _digest(msgspec.json.decode(b"".join(pile.read(0, pile.size))))
        for digest, same in grouped(by_digest):
            (_, at), (data,) = next(same)
            if digest != known:
                in_order.add((at,), data)
        by_digest.close()
        yield b"["
        yield from pile.read(0, pile.size)
        for _, (data,) in in_order:
            yield b"," + data
        yield b"]"


# The values stay JSON: decoded they would take memory and time at each level that they are in.
_fields_of = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def _digest(value: Any) -> bytes:
    return hashlib.blake2b(identity(value), digest_size=_DIGEST_BYTES).digest()


class Merged:
    """What is merged so far, in place, so that the cost of a value does not grow with their number."""

    def __init__(self) -> None:
        self._is_empty = True
        self._value: Any = {}

    def take(self, value: Any) -> None:
        self._value = value if self._is_empty else _both(self._value, value)
        self._is_empty = False

    def value(self) -> Any:
        return _plain(self._value)


class _Distinct:
    """The distinct values on which answers differ, in input order."""

    def __init__(self) -> None:
        self._values: dict[bytes, Any] = {}

    def add(self, value: Any) -> None:
        self._values.setdefault(identity(_plain(value)), value)

    def values(self) -> list[Any]:
        return list(self._values.values())


def _merge(left: dict[str, Any], right: dict[str, Any]) -> None:
    """Merge ``right`` into ``left``."""
    for key, value in right.items():
        left[key] = _both(left[key], value) if key in left else value


def _both(left: Any, right: Any) -> Any:
    if isinstance(left, _Distinct):
        for value in _listed(right):
            left.add(value)
        return left
    if isinstance(left, dict) and isinstance(right, dict):
        _merge(left, right)
        return left
    if isinstance(left, list):
        left.extend(_listed(right))
        return left
    if isinstance(right, list):
        return [left, *right]
    if identity(_plain(left)) == identity(_plain(right)):
        return left
    distinct = _Distinct()
    distinct.add(left)
    distinct.add(right)
    return distinct


def _plain(value: Any) -> Any:
    """Return a JSON value, with collected values as lists."""
    if isinstance(value, _Distinct):
        return [_plain(one) for one in value.values()]
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
