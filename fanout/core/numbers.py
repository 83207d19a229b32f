"""Numbers in texts as models and people write them, and numbers of JSON: exact, or none at all."""

from __future__ import annotations

import math
import re
from typing import Any

__all__ = ["NUMBER", "as_number", "number_of_text", "plain_signs", "read_number"]

# A number in a text, with its separators: `-5`, `7.9`, `7,900`, `.5`, `1e3`.
NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d++(?:[.,]\d++)*+|\.\d++)(?:[eE][-+]?\d++)?")
_SEPARATOR = re.compile(r"[.,]")
_GROUP_DIGITS = 3
# More digits than a number has that other programs can read.
_MOST_DIGITS = 400
# One character each, so that positions stay: signs and separators of other scripts.
_SIGNS = str.maketrans({
    "\u2212": "-", "\ufe63": "-", "\uff0d": "-", "\uff0b": "+", "\uff0e": ".", "\uff0c": ",",
    "\u066b": ".", "\u066c": ",",
})  # fmt: skip


def as_number(value: Any) -> int | float | None:
    """Return a JSON value if it is a finite number; true and false are none."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return _finite(value) if is_number else None


def plain_signs(text: str) -> str:
    """Return a text of the same length with the signs of numbers in ASCII: U+2212 becomes ``-``."""
    return text if text.isascii() else text.translate(_SIGNS)


def number_of_text(text: str) -> int | float | None:
    """Return the number that is the whole of a text, or None."""
    plain = plain_signs(text.strip())
    return read_number(plain) if NUMBER.fullmatch(plain) else None


def read_number(found: str) -> int | float | None:
    """Return the value of a match of NUMBER; None if it has no finite one.

    Commas before each three digits separate thousands (``7,900``); one comma otherwise is a decimal
    comma (``7,9``). With both, the last one is the decimal sign (``1.234,5``). Of a list such as
    ``1,2,3`` it is the first number.
    """
    mantissa, mark, exponent = found.replace("E", "e").partition("e")
    if len(found) > _MOST_DIGITS:
        return None
    decimal = _decimal(mantissa)
    if mark or "." in decimal:
        return _finite(float(f"{decimal}{mark}{exponent}"))
    return _finite(int(decimal))


def _decimal(mantissa: str) -> str:
    """Return a number with a point as the decimal sign, and without separators of thousands."""
    signs = _SEPARATOR.findall(mantissa)
    groups = _SEPARATOR.split(mantissa)
    if not signs or signs == ["."]:
        return mantissa
    if len(set(signs)) == 1 and _are_thousands(groups):
        return "".join(groups)
    *thousands, last = signs
    if len(set(thousands)) == 1 and last not in thousands and _are_thousands(groups[:-1]):
        return f"{''.join(groups[:-1])}.{groups[-1]}"
    if signs in ([","], ["."]) or signs[0] == ".":
        return f"{groups[0]}.{groups[1]}"
    return groups[0]


def _are_thousands(groups: list[str]) -> bool:
    first, *rest = groups
    digits = first.lstrip("+-")
    return (
        0 < len(digits) <= _GROUP_DIGITS
        and int(digits) > 0
        and all(len(group) == _GROUP_DIGITS for group in rest)
    )


def _finite(number: float) -> int | float | None:
    try:
        return number if math.isfinite(number) else None
    except OverflowError:
        return None
