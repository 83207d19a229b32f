"""The equality of JSON values."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["identity"]


def identity(value: Any) -> bytes:
    """Return bytes that are equal for two JSON values if and only if the values are equal.

    The order of keys makes no difference, ``1`` and ``1.0`` are equal, ``1`` and ``true`` are not.
    """
    return msgspec.json.encode(_plain_numbers(value), order="deterministic")


def _plain_numbers(value: Any) -> Any:
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, dict):
        return {key: _plain_numbers(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain_numbers(one) for one in value]
    return value
