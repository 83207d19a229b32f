"""Text for the page: of bounded length, with control characters made visible."""

from __future__ import annotations

__all__ = ["clean", "cut", "one_line"]

# Control characters become their Unicode pictures. Characters that change the reading order, and
# lone surrogates, become U+FFFD.
_REPLACEMENT = 0xFFFD
_PICTURES = 0x2400
_PICTURE_OF_DELETE = 0x2421
_VISIBLE: dict[int, int] = {
    **{code: _PICTURES + code for code in range(0x20) if code not in b"\t\n"},
    0x7F: _PICTURE_OF_DELETE,
    **dict.fromkeys(range(0x80, 0xA0), _REPLACEMENT),
    **dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFFFE, 0xFFFF), _REPLACEMENT),
    **dict.fromkeys(range(0xD800, 0xE000), _REPLACEMENT),
}


def clean(text: str) -> str:
    """Return a text with the characters made visible that a browser would hide or interpret."""
    return text.replace("\r\n", "\n").replace("\r", "\n").translate(_VISIBLE)


def cut(text: str, most: int) -> str:
    """Return at most ``most`` characters of a text, and the number of the omitted ones."""
    more = len(text) - most
    return text if more <= 0 else f"{text[:most]} … ({more:,} more characters)"


def one_line(text: str, most: int = 200) -> str:
    """Return a text as one line of at most ``most`` characters; longer ones end in an ellipsis."""
    # A text may be as long as a book: its end is not read.
    line = " ".join(text[: 4 * most].split())
    return line if len(line) <= most else f"{line[: most - 1]}…"
