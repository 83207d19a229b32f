"""The parts of a document that a model has found, and what a document needs to be split further."""

from __future__ import annotations

import msgspec

__all__ = ["Layout", "Part"]


class Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A part of a document.

    Attributes:
        start: The offset of its first character in the document's text.
        end: The offset behind its last character.
        title: What it is about; empty if it has no title.
        subtask: What to do; empty where the job's prompt says all.
    """

    start: int
    end: int
    title: str = ""
    subtask: str = ""


class Layout(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where the pages and headings of a document begin: see Document."""

    pages: list[int] = []
    page_numbers: list[int] = []
    headings: list[tuple[int, str]] = []
