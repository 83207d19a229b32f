"""How values are shown that are equal, but not written in the same way: ``1``, ``1.0`` and ``1e0``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["FirstForms"]

# The first bytes of texts, true, false and null, which have one form only.
_ONE_FORM = b'"tfn'
# What a form takes beside its bytes.
_FORM_BYTES = 300


class FirstForms:
    """Keeps of equal values the form of the first one in the input."""

    def __init__(self) -> None:
        # JSON, so that nobody changes a list or an object.
        self._forms: dict[bytes, tuple[tuple[int, int], bytes]] = {}

    def __iter__(self) -> Iterator[tuple[bytes, tuple[int, int], bytes]]:
        """Yield the values that have other forms, with the first one of each, and where that is."""
        return ((key, first, form) for key, (first, form) in self._forms.items())

    def is_new(self, key: bytes, first: tuple[int, int]) -> bool:
        """Say whether a value has other forms, and none is known that comes before this one.

        Args:
            key: Equal for equal values: see ``fanout.core.json_text.identity``.
            first: The index of the branch, and which of its values it is.
        """
        if key[0] in _ONE_FORM:
            return False
        known = self._forms.get(key)
        return known is None or first < known[0]

    def add(self, key: bytes, form: Any, first: tuple[int, int]) -> int:
        """Keep a form that is new; return about the bytes of memory that it takes."""
        data = msgspec.json.encode(form)
        size = 0 if key in self._forms else _FORM_BYTES + len(key) + len(data)
        self._forms[key] = first, data
        return size
