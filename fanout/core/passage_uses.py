"""Which passages a prompt had, as the outcome of its branch says."""

from __future__ import annotations

import msgspec

__all__ = ["PassageUse"]


class PassageUse(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A passage that was found for a prompt.

    Attributes:
        id: Its id, as the prompt has it.
        source: Where it is from: the name of its document, with its pages.
        title: Its title, or the headings that it stands under.
        score: How well it fits the query, where that is known; higher is better.
        share: The part of its text (0 to 1) for which the prompt had room.
    """

    id: str
    source: str = ""
    title: str = ""
    score: float | None = None
    share: float = 1.0
