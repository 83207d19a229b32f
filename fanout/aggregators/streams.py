"""Values of aggregates as bytes, one after the other: they may be larger than memory.

A value has one of three forms: ``text`` is the UTF-8 of a text, ``rows`` are JSON objects, each with a
line break behind it, and ``json`` is the JSON text of any value.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import structs

from fanout.aggregators.base import Aggregate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fanout.aggregators.coverage import Coverage

__all__ = ["Form", "Streamed", "covered", "value_of", "whole"]

Form = Literal["text", "rows", "json"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Streamed:
    """The aggregate of a group whose value comes in pieces.

    Attributes:
        form: That of the value.
        chunks: The bytes of the value; they can be read once.
        end: Returns the aggregate without its value, once all bytes have been read.
    """

    form: Form
    chunks: Iterator[bytes]
    end: Callable[[], Aggregate]


def whole(made: Aggregate | Streamed) -> Aggregate:
    """Return an aggregate with its value in memory."""
    if isinstance(made, Aggregate):
        return made
    value = value_of(made.form, b"".join(made.chunks))
    return structs.replace(made.end(), value=value)


def covered(made: Aggregate | Streamed, coverage: Coverage) -> Aggregate | Streamed:
    """Return an aggregate with what is behind it; where that is too little, without its value."""
    if isinstance(made, Aggregate):
        value = made.value if coverage.problem is None else None
        return structs.replace(made, value=value, coverage=coverage)
    if coverage.problem is not None:
        return structs.replace(made.end(), coverage=coverage)
    end = made.end
    return replace(made, end=lambda: structs.replace(end(), coverage=coverage))


def value_of(form: Form, data: bytes) -> Any:
    """Return the value of bytes in one of the forms."""
    if form == "text":
        return data.decode()
    if form == "rows":
        return [msgspec.json.decode(line) for line in data.split(b"\n")[:-1]]
    return msgspec.json.decode(data)
