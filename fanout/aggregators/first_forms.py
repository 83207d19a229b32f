"""How values are shown that are equal, but not written in the same way: ``1``, ``1.0`` and ``1e0``."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["FirstForms"]

# The first bytes of texts, true, false and null, which have one form only.
_ONE_FORM = b'"tfn'


class FirstForms:
    """Keeps of equal values the form of the first one in the input."""

    def __init__(self) -> None:
        # JSON, so that nobody changes a list or an object.
        self._forms: dict[bytes, tuple[tuple[int, int], bytes]] = {}

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

    def add(self, key: bytes, form: Any, first: tuple[int, int]) -> None:
        """Keep a form that is new."""
        self._forms[key] = first, msgspec.json.encode(form)

    def merge(self, other: FirstForms) -> None:
        """Add the forms of another one."""
        for key, theirs in other._forms.items():
            ours = self._forms.setdefault(key, theirs)
            if theirs[0] < ours[0]:
                self._forms[key] = theirs

    def shown(self, key: bytes) -> Any:
        """Return the first form of a value."""
        return msgspec.json.decode(self._forms[key][1] if key in self._forms else key)
