"""Records for people, as ``repr`` shows them: one short line."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["one_line", "range_of"]

_VALUE_CHARS = 100
_DIGITS = 4


def one_line(name: str, values: Mapping[str, object]) -> str:
    """Return the chosen values of a record as one short line."""
    return f"<{name} {' '.join(f'{key}={_short(value)}' for key, value in values.items())}>"


def range_of(name: str, low: float | None, high: float | None) -> dict[str, object]:
    """Return a range as one value, or as its two ends; an unknown end is None."""
    if low == high:
        return {name: low}
    return {f"{name}_low": low, f"{name}_high": high}


def _short(value: object) -> str:
    if isinstance(value, float):
        value = int(value) if value.is_integer() else float(f"{value:.{_DIGITS}g}")
    text = str(value) if isinstance(value, int) else repr(value)
    return text if len(text) <= _VALUE_CHARS else f"{text[: _VALUE_CHARS - 1]}…"
