"""What the values of some settings mean."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["MAX_CONCURRENCY", "parse_autoscale", "state_home"]

MAX_CONCURRENCY = 10_000


def state_home() -> Path:
    """Return the folder for the state of programs (the XDG Base Directory Specification)."""
    home = Path(os.environ.get("XDG_STATE_HOME", ""))
    # The specification requires that relative paths are ignored.
    return home if home.is_absolute() else Path.home() / ".local" / "state"


def parse_autoscale(text: str) -> tuple[int, int]:
    """Return the two numbers of processes in ``MAX,MIN``. Raises ValueError."""
    numbers = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    match numbers:
        case [most, fewest] if MAX_CONCURRENCY >= most >= fewest >= 1:
            return most, fewest
    msg = f"must be MAX,MIN with {MAX_CONCURRENCY} >= MAX >= MIN >= 1, as 8,2"
    raise ValueError(msg)
