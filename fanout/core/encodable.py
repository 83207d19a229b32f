"""Whether texts can be stored: undecodable arguments of a command line cannot be encoded."""

from __future__ import annotations

__all__ = ["is_utf8"]


def is_utf8(value: object) -> bool:
    """Say whether all strings in a value can be encoded."""
    if isinstance(value, dict):
        return all(is_utf8(part) for part in (*value, *value.values()))
    if isinstance(value, tuple):
        return all(is_utf8(part) for part in value)
    return not isinstance(value, str) or value.isascii() or _encodes(value)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
