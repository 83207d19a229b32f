"""How much room the answer cache may take on a server that must never be full."""

from __future__ import annotations

__all__ = ["MOST_SHARE", "is_crowded", "room_bytes"]

# Of the server's memory, for kept answers; and in use at all, above which none are kept.
MOST_SHARE = 0.25
_CROWDED = 0.8


def is_crowded(*, used_bytes: int, most_bytes: int) -> bool:
    """Say whether kept answers must make room for runs; a limit of 0 is none."""
    return most_bytes > 0 and used_bytes > _CROWDED * most_bytes


def room_bytes(limit_bytes: int, *, most_bytes: int) -> int:
    """Return the room for kept answers in bytes.

    Args:
        limit_bytes: What the user allows.
        most_bytes: The server's own limit; 0 is none.
    """
    return min(limit_bytes, int(MOST_SHARE * most_bytes)) if most_bytes else limit_bytes
