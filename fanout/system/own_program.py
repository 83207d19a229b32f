"""Whether this process runs a program of fanout, such as the command, or one of a user that imports it."""

from __future__ import annotations

__all__ = ["is_own_program", "mark_own_program"]

_MARKS: list[bool] = []


def mark_own_program() -> None:
    """Say that this process is fanout's own: it may load other packages as it needs them."""
    _MARKS.append(True)


def is_own_program() -> bool:
    """Whether the process was marked."""
    return bool(_MARKS)
