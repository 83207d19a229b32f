"""Texts in parts: few long ones in place of very many short ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["long_parts"]

_PART_CHARS = 64_000


def long_parts(parts: Iterable[str]) -> Iterator[str]:
    """Yield the same text in parts of at least 64,000 characters, but for the last, which may be empty."""
    some: list[str] = []
    size = 0
    for part in parts:
        some.append(part)
        size += len(part)
        if size >= _PART_CHARS:
            yield "".join(some)
            some, size = [], 0
    yield "".join(some)
