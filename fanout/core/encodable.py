"""Whether texts can be stored: undecodable arguments of a command line cannot be encoded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fanout.core.field_words import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["is_utf8", "undecoded_problem"]


def undecoded_problem(job: Any) -> str | None:
    """Return the error of the first field of a job that cannot be encoded; None if all can be."""
    for name, value in _undecoded(job, ""):
        return f"{name}: holds bytes that are not UTF-8 text (got {shown(value)})"
    return None


def _undecoded(part: Any, path: str) -> Iterator[tuple[str, object]]:
    """Yield the fields of a job and of its parts that hold what cannot be encoded, with their values.

    Args:
        part: The job, or a part of it: a model of pydantic.
        path: Where that is.
    """
    for name in type(part).model_fields:
        value = getattr(part, name)
        where = f"{path}.{name}" if path else name.replace("reduces", "reduce")
        some = value if isinstance(value, tuple) else (value,)
        parts = [one for one in some if hasattr(type(one), "model_fields")]
        for number, one in enumerate(parts, 1):
            called = getattr(one, "name", None)
            at = called if isinstance(called, str) and is_utf8(called) else str(number)
            yield from _undecoded(one, f"{where}.{at}" if isinstance(value, tuple) else where)
        if not parts and not is_utf8(value):
            yield where, value


def is_utf8(value: object) -> bool:
    """Say whether all strings in a value can be encoded."""
    if isinstance(value, dict):
        return all(is_utf8(part) for part in (*value, *value.values()))
    if isinstance(value, (tuple, list, set, frozenset)):
        return all(is_utf8(part) for part in value)
    return not isinstance(value, str) or value.isascii() or _encodes(value)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
