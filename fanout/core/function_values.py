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

__all__ = ["function_text", "json_value", "plain_text"]

# As deep as answers of models may be.
_DEEPEST = 100
_LEAST, _MOST = -(2**63), 2**64 - 1
_AS_TEXT = (UUID, PurePath)


def plain_text(text: str) -> str:
    """Return a text as a plain string: subclasses have characters of their own, and no encoding.

    A lone surrogate, which UTF-8 cannot encode, is replaced, as in the answers of models.
    """
    plain = text if type(text) is str else str.__str__(text)
    return plain if plain.isascii() else plain.encode("utf-8", "replace").decode("utf-8")


def function_text(value: object) -> str:
    """Return what a function returned as the text of an answer: a text as it is, other values as JSON.

    Raises:
        ValueError: It is an empty text, or no JSON value; the message says what it is.
    """
    if not isinstance(value, str):
        return msgspec.json.encode(json_value(value)).decode("utf-8")
    if not value.strip():
        raise ValueError("an empty text")
    return plain_text(value)


def json_value(value: object) -> Cell:
    """Return a value as the JSON value that it stands for.

    Numbers and arrays of numpy, enums, tuples, mappings, dataclasses, and models of pydantic and msgspec
    become what JSON has for them; dates, times, decimals, UUIDs and paths become text.

    Raises:
        ValueError: JSON has nothing for it, or for a part of it; the message says what it is, and where.
    """
    return _json(value, (), ())


def _json(value: Any, path: tuple[str, ...], parents: tuple[int, ...]) -> Cell:
    # Missing values of pandas have no other mark than the name of their type.
    if value is None or isinstance(value, bool) or _is_missing(value):
        return value if isinstance(value, bool) else None
    if isinstance(value, Enum) and not isinstance(value, (str, int, float)):
        return _json(value.value, path, parents)
    if isinstance(value, str):
        return plain_text(value)
    if isinstance(value, (int, float)):
        return _number(value, path)
    text = _text_of(value, path)
    return _nested(value, path, parents) if text is None else plain_text(text)


def _is_missing(value: object) -> bool:
    return is_missing(value) and not isinstance(value, float)


def _nested(value: Any, path: tuple[str, ...], parents: tuple[int, ...]) -> Cell:
    if id(value) in parents:
        raise ValueError(f"a value that contains itself{_where(path)}")
    if len(path) >= _DEEPEST:
        raise ValueError(f"a value that is nested more than {_DEEPEST} levels deep")
    inner = (*parents, id(value))
    if isinstance(value, (list, tuple)):
        return [_json(one, (*path, str(at)), inner) for at, one in enumerate(value)]
    fields = _fields(value)
    if fields is not None:
        return _object(fields, path, inner)
    if hasattr(value, "dtype") and callable(getattr(value, "tolist", None)):
        return _of_array(value, path, inner)
    raise ValueError(f"{_kind(value)}{_where(path)}, which is no text or JSON value{_hint(value)}")


def _number(value: float, path: tuple[str, ...]) -> Cell:
    if isinstance(value, int):
        if _LEAST <= value <= _MOST:
            return int(value)
        raise ValueError(f"a whole number of more than 64 bits{_where(path)}: return it as a text")
    if math.isfinite(value):
        return float(value)
    raise ValueError(
        f"{float(value)}{_where(path)}, which JSON does not have: return None or a text"
    )


def _text_of(value: Any, path: tuple[str, ...]) -> str | None:
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


def _object(fields: Mapping[Any, Any], path: tuple[str, ...], parents: tuple[int, ...]) -> Cell:
    made: dict[str, Cell] = {}
    for key, one in fields.items():
        name = _key(key, path)
        if name in made:
            raise ValueError(f"a mapping{_where(path)} with two keys that read {name!r}")
        made[name] = _json(one, (*path, name), parents)
    return made


def _key(key: object, path: tuple[str, ...]) -> str:
    plain = None if isinstance(key, bool) or key is None else _json(key, path, ())
    if isinstance(plain, (str, int, float)):
        return str(plain)
    raise ValueError(
        f"a mapping{_where(path)} with a key of type {type(key).__name__}: "
        "keys are texts, numbers or dates"
    )


def _of_array(value: Any, path: tuple[str, ...], parents: tuple[int, ...]) -> Cell:
    if getattr(getattr(value, "dtype", None), "kind", "") in ("M", "m"):
        # As a list, nanoseconds would be numbers.
        value = value.astype(str)
    plain = value.tolist()
    if type(plain) is type(value):
        # A number of more bits than Python has for it.
        plain = float(plain)
    return _json(plain, path, parents)


def _kind(value: object) -> str:
    return value.__name__ if isinstance(value, type) else type(value).__name__


def _hint(value: object) -> str:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return ": decode it"
    return ": return a list" if hasattr(value, "__iter__") else ""


def _where(path: tuple[str, ...]) -> str:
    return f" at {'.'.join(path)[:_DEEPEST]!r}" if path else ""
