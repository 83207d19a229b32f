"""What a process that parses documents is asked, and what it answers."""

from __future__ import annotations

import msgspec

__all__ = ["HEADER_BYTES", "Parsed", "Request", "framed"]

HEADER_BYTES = 4


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A document that is to be parsed.

    Attributes:
        path: The absolute path of its file.
        name: The name that the user knows it by, whose end may say its format.
        max_bytes: The size in UTF-8 bytes above which its text is refused.
        timeout_s: Seconds after which it is given up.
        encoding: The encoding of text that does not say its own; None is UTF-8.
    """

    path: str
    name: str
    max_bytes: int
    timeout_s: float
    encoding: str | None = None


class Parsed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The text of a document.

    Attributes:
        text: The text; empty if ``error`` is set.
        pages: For each page, the offset of its first character; empty if unknown.
        headings: Offsets, each with the path of headings that holds from there on.
        error: Why it cannot be used, or None.
        instead_of: What its name says that it is, in words, if it is text; else empty.
        is_gone: Whether the file does not exist.
        is_last: Whether the process ends now, because it has grown; another then takes its place.
    """

    text: str = ""
    pages: list[int] = []
    headings: list[tuple[int, str]] = []
    error: str | None = None
    instead_of: str = ""
    is_gone: bool = False
    is_last: bool = False


def framed(data: bytes) -> bytes:
    """Return a message with its length before it."""
    return len(data).to_bytes(HEADER_BYTES, "big") + data
