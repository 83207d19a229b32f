"""Sum, mean, least and greatest of numbers, exact in any order."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Self

__all__ = ["ExactNumbers"]

# Every float is a whole number of these parts of one.
_PART_BITS = 1074


class ExactNumbers:
    """Takes numbers, and measures them. No order of them, and no partition, makes a difference.

    Whole numbers are added as such, and floats as the binary fractions that they are: the sum is
    rounded once, at its end.
    """

    def __init__(self) -> None:
        self.count = 0
        self._whole = 0
        self._parts = 0
        self._has_floats = False
        self._least: int | float | None = None
        self._greatest: int | float | None = None

    def add(self, number: float) -> None:
        """Add a finite number; of 0.0 and -0.0 it is always the first."""
        self.count += 1
        number += 0
        if isinstance(number, int):
            self._whole += number
        else:
            above, below = number.as_integer_ratio()
            self._parts += above << (_PART_BITS + 1 - below.bit_length())
            self._has_floats = True
        self._bound(number, number)

    def merge(self, other: ExactNumbers) -> None:
        """Add the numbers of another one."""
        self.count += other.count
        self._whole += other._whole
        self._parts += other._parts
        self._has_floats |= other._has_floats
        if other._least is not None and other._greatest is not None:
            self._bound(other._least, other._greatest)

    def state(self) -> tuple[int, int, int, bool, int | float | None, int | float | None]:
        """Return all that it holds, as plain values."""
        whole, parts = self._whole, self._parts
        return self.count, whole, parts, self._has_floats, self._least, self._greatest

    @classmethod
    def of(cls, state: tuple[Any, ...]) -> Self:
        """Return numbers with what ``state`` has returned."""
        one = cls()
        one.count, one._whole, one._parts, one._has_floats, one._least, one._greatest = state
        return one

    def _bound(self, least: float, greatest: float) -> None:
        # Of 1 and 1.0 it is always the same one.
        if self._least is None or (least, isinstance(least, float)) < (
            self._least, isinstance(self._least, float),
        ):  # fmt: skip
            self._least = least
        if self._greatest is None or (greatest, isinstance(greatest, int)) > (
            self._greatest, isinstance(self._greatest, int),
        ):  # fmt: skip
            self._greatest = greatest

    def measure(self, kind: str) -> int | float | None:
        """Return ``sum``, ``mean``, ``min`` or ``max``; None without numbers, or beyond a float."""
        if not self.count:
            return None
        if kind in ("min", "max"):
            return self._least if kind == "min" else self._greatest
        if kind == "sum" and not self._has_floats:
            return self._whole
        total = self._whole + Fraction(self._parts, 1 << _PART_BITS)
        try:
            return float(total if kind == "sum" else total / self.count)
        except OverflowError:
            return None
