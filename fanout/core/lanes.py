"""The lanes: how calls are bought."""

from __future__ import annotations

from typing import Literal

__all__ = ["Lane"]

# ``flex`` is cheaper and slower, and ``batch`` is answered within a day, at about half the price.
Lane = Literal["realtime", "flex", "batch"]
