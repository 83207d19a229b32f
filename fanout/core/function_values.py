"""What functions of the user return, as the texts and JSON values that answers are."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from datetime import date, time
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any
from uuid import UUID

import msgspec
from pydantic import BaseModel

from fanout.core.cells import Cell, is_missing

__all__ = ["function_text", "plain_text"]

# As deep as answers of models may be.
_DEEPEST = 100
_LEAST, _MOST = -(2**63), 2**64 - 1
_AS_TEXT = (UUID, PurePath)
# A value of one character, and what parts it from the next one.
_LEAST_BYTES = 2
# The keys and places of a value within others.
_Path = tuple[str | int, ...]


def plain_text(text: str) -> str:
    """Return a text as a plain string: subclasses have characters of their own, and no encoding.

    A lone surrogate, which UTF-8 cannot encode, is replaced, as in the answers of models.
    """
    plain = text if type(text) is str else str.__str__(text)
    return plain if plain.isascii() else plain.encode("utf-8", "replace").decode("utf-8")


def function_text(value: object, *, max_kb: int | None = None) -> str:
    """Return what a function returned as the text of an answer: a text as it is, other values as JSON.

    Numbers and arrays of numpy, enums, tuples, mappings, dataclasses, and models of pydantic and msgspec
    become what JSON has for them; dates, times, decimals, UUIDs and paths become text.

    Args:
        value: What it returned.
        max_kb: The longest JSON in kilobytes: about so much is made of it; None is any length.

    Raises:
        ValueError: It is an empty text, no JSON value, or too long; the message says what it is.
    """
    if not isinstance(value, str):
        return msgspec.json.encode(_Reader(max_kb).json(value, (), ())).decode("utf-8")
    if not value.strip():
        raise ValueError("an empty text")
    return plain_text(value)


class _Reader:
    """Makes a JSON value of what a function returned, and stops when that is too long.

    Args:
        max_kb: The longest JSON in kilobytes; None is any length.
    """

    def __init__(self, max_kb: int | None) -> None:
        self._max_kb = max_kb
        # Nothing follows the last value.
        self._left = math.inf if max_kb is None else 1_000 * max_kb + 1

    def json(self, value: Any, path: _Path, parents: tuple[int, ...]) -> Cell:
        """Return a value, which has a place in others, as JSON has it. Raises ValueError."""
        if isinstance(value, Enum) and not isinstance(value, (str, int, float)):
            return self.json(value.value, path, parents)
        self._left -= _LEAST_BYTES
        self._require(0)
        # Missing values of pandas have no other mark than the name of their type.
        if value is None or isinstance(value, bool) or _is_missing(value):
            return value if isinstance(value, bool) else None
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, (int, float)):
            return _number(value, path)
        text = _text_of(value, path)
        return self._nested(value, path, parents) if text is None else self._text(text)

    def _text(self, text: str) -> str:
        plain = plain_text(text)
        self._left -= len(plain)
        self._require(0)
        return plain

    def _require(self, least_bytes: int) -> None:
        if least_bytes > self._left:
            raise ValueError(
                f"a value of more than {self._max_kb:,} kB as JSON, more than FANOUT_MAX_OUTPUT_KB"
            )

    def _nested(self, value: Any, path: _Path, parents: tuple[int, ...]) -> Cell:
        if id(value) in parents:
            raise ValueError(f"a value that contains itself{_where(path)}")
        if len(path) >= _DEEPEST:
            raise ValueError(f"a value that is nested more than {_DEEPEST} levels deep")
        inner = (*parents, id(value))
        if isinstance(value, (list, tuple)):
            return [self.json(one, (*path, at), inner) for at, one in enumerate(value)]
        fields = _fields(value)
        if fields is not None:
            return self._object(fields, path, inner)
        if hasattr(value, "dtype") and callable(getattr(value, "tolist", None)):
            return self._of_array(value, path, inner)
        raise ValueError(
            f"{_kind(value)}{_where(path)}, which is no text or JSON value{_hint(value)}"
        )

    def _object(self, fields: Mapping[Any, Any], path: _Path, parents: tuple[int, ...]) -> Cell:
        made: dict[str, Cell] = {}
        for key, one in fields.items():
            name = self._key(key, path)
            if name in made:
                raise ValueError(
                    f"a mapping{_where(path)} with two keys that read {name[:_DEEPEST]!r}"
                )
            made[name] = self.json(one, (*path, name), parents)
        return made

    def _key(self, key: object, path: _Path) -> str:
        plain = None if isinstance(key, bool) or key is None else self.json(key, path, ())
        if isinstance(plain, (str, int, float)):
            return str(plain)
        raise ValueError(
            f"a mapping{_where(path)} with a key of type {type(key).__name__}: "
            "keys are texts, numbers or dates"
        )

    def _of_array(self, value: Any, path: _Path, parents: tuple[int, ...]) -> Cell:
        size = getattr(value, "size", 0)
        if isinstance(size, int):
            self._require(_LEAST_BYTES * size)
        if getattr(getattr(value, "dtype", None), "kind", "") in ("M", "m"):
            # As a list, nanoseconds would be numbers.
            value = value.astype(str)
        plain = value.tolist()
        if type(plain) is type(value):
            # A number of more bits than Python has for it.
            plain = float(plain)
        # It is counted as a list or number.
        self._left += _LEAST_BYTES
        return self.json(plain, path, parents)


def _is_missing(value: object) -> bool:
    return is_missing(value) and not isinstance(value, float)


def _number(value: float, path: _Path) -> Cell:
    if isinstance(value, int):
        if _LEAST <= value <= _MOST:
            return int(value)
        raise ValueError(f"a whole number of more than 64 bits{_where(path)}: return it as a text")
    if math.isfinite(value):
        return float(value)
    raise ValueError(
        f"{float(value)}{_where(path)}, which JSON does not have: return None or a text"
    )


def _text_of(value: Any, path: _Path) -> str | None:
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, Decimal):
        if not value.is_finite():
            raise ValueError(
                f"{value}{_where(path)}, which JSON does not have: return None or a text"
            )
        return str(value)
    return str(value) if isinstance(value, _AS_TEXT) else None


def _fields(value: Any) -> Mapping[Any, Any] | None:
    if isinstance(value, Mapping):
        return value
    if isinstance(value, BaseModel):
        return value.model_dump()
    if isinstance(value, msgspec.Struct):
        return msgspec.structs.asdict(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
    return None


def _kind(value: object) -> str:
    return value.__name__ if isinstance(value, type) else type(value).__name__


def _hint(value: object) -> str:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return ": decode it"
    return ": return a list" if hasattr(value, "__iter__") else ""


def _where(path: _Path) -> str:
    return f" at {'.'.join(map(str, path))[:_DEEPEST]!r}" if path else ""
