"""The columns of rows: their names in prompts, and their cells, which are JSON values."""

from __future__ import annotations

import base64
import json
import math
from typing import Any, cast

__all__ = [
    "COLUMN",
    "OWN",
    "Cell",
    "cell_of",
    "cell_size",
    "cell_text",
    "equal_text",
    "is_missing",
    "with_point",
]

# What says that a name is the user's column, or fanout's own.
COLUMN = "column."
OWN = "fanout."

# A string, number, boolean or None; or a list or mapping of these.
Cell = Any

# Compared by name: pandas.NA supports no comparison, and pandas is not imported here.
_MISSING = frozenset({"NAType", "NaTType"})
_LARGEST = 2**63 - 1
_WITH_TEXT = frozenset({str, list, dict})
_NUMBER_BYTES = 9


def is_missing(value: object) -> bool:
    """Say whether a value is missing: None, NaN, or a missing value of pandas."""
    if value is None or type(value).__name__ in _MISSING:
        return True
    return isinstance(value, float) and math.isnan(value)


def cell_of(value: object) -> Cell:
    """Return a value of a row as one that JSON can hold, with its type where JSON has it.

    A missing value is None. Numbers that JSON cannot hold, dates, and other values become text;
    so do bytes, in base64 if they are no UTF-8.

    Raises:
        ValueError, TypeError, RecursionError: The value contains itself, or has no text.
    """
    if type(value) is str or isinstance(value, bool):
        return value
    if is_missing(value):
        return None
    if isinstance(value, (int, float)):
        return _number(value)
    if isinstance(value, dict):
        return {str(key): cell_of(inner) for key, inner in value.items()}
    return _list(value) if isinstance(value, (list, tuple)) else _plain(value)


def _list(values: list[object] | tuple[object, ...]) -> Cell:
    # An embedding has thousands of numbers, which need no look one by one.
    if set(map(type, values)) == {float} and all(map(math.isfinite, cast("list[float]", values))):
        return list(values)
    return [cell_of(inner) for inner in values]


def _number(value: float) -> Cell:
    if isinstance(value, int):
        return int(value) if -_LARGEST <= value <= _LARGEST else str(int(value))
    return float(value) if math.isfinite(value) else str(float(value))


def _plain(value: object) -> Cell:
    # Numbers and arrays of numpy become JSON values; dates and other values become str().
    if isinstance(value, str):
        # Not str(value), which is the name of an enum.
        return str.__str__(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _text_of(bytes(value))
    plain = value.tolist() if hasattr(value, "tolist") else value
    return cell_of(plain) if isinstance(plain, (bool, int, float, list)) else str(plain)


def _text_of(data: bytes) -> str:
    """Return bytes as JSON can hold them: as the text that they are, or else in base64."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return base64.b64encode(data).decode()


def cell_text(cell: Cell) -> str:
    """Return a cell as the text that a prompt shows; a missing one is empty."""
    if isinstance(cell, str):
        return cell
    return "" if cell is None else json.dumps(cell, ensure_ascii=False)


def equal_text(cell: Cell) -> str:
    """Return the text that equal cells share: ``1`` of ``1`` and ``1.0``, and keys in their order."""
    if isinstance(cell, str):
        return cell
    return json.dumps(_with_equal_numbers(cell), ensure_ascii=False, sort_keys=True)


def _with_equal_numbers(cell: Cell) -> Cell:
    if isinstance(cell, float) and cell.is_integer() and abs(cell) <= _LARGEST:
        return int(cell)
    if isinstance(cell, dict):
        return {key: _with_equal_numbers(one) for key, one in cell.items()}
    return [_with_equal_numbers(one) for one in cell] if isinstance(cell, list) else cell


def cell_size(cell: Cell) -> int:
    """Return about how many bytes a cell takes in memory or in a message."""
    if isinstance(cell, str):
        return len(cell)
    if isinstance(cell, dict):
        return sum(map(len, cell)) + sum(map(cell_size, cell.values()))
    if isinstance(cell, list):
        # The numbers of an embedding need no look one by one.
        if _WITH_TEXT.isdisjoint(map(type, cell)):
            return _NUMBER_BYTES * len(cell)
        return sum(map(cell_size, cell))
    return _NUMBER_BYTES


def with_point(name: str) -> str:
    """Return a name whose prefix may end in a colon with a point in its place."""
    prefix, colon, rest = name.partition(":")
    return f"{prefix}.{rest}" if colon and f"{prefix}." in {COLUMN, OWN} else name
