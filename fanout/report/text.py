"""Text as a page shows it: of a bounded length, without characters that a browser would obey."""

from __future__ import annotations

__all__ = ["clean", "cut", "one_line"]

# Control characters become their pictures, so that they are seen. Characters that change the order
# of reading, and halves of surrogate pairs, become U+FFFD.
_UNSHOWN = 0xFFFD
_PICTURES = 0x2400
_PICTURE_OF_DELETE = 0x2421
_SEEN: dict[int, int] = {
    **{code: _PICTURES + code for code in range(0x20) if code not in b"\t\n"},
    0x7F: _PICTURE_OF_DELETE,
    **dict.fromkeys(range(0x80, 0xA0), _UNSHOWN),
    **dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFFFE, 0xFFFF), _UNSHOWN),
    **dict.fromkeys(range(0xD800, 0xE000), _UNSHOWN),
}


def clean(text: str) -> str:
    """Return a text that shows all characters which a browser would hide or obey."""
    return text.replace("\r\n", "\n").replace("\r", "\n").translate(_SEEN)


def cut(text: str, most: int) -> str:
    """Return at most so many characters of a text, and how many there are more."""
    more = len(text) - most
    return text if more <= 0 else f"{text[:most]} … ({more:,} more characters)"


def one_line(text: str, most: int = 200) -> str:
    """Return a text as one line of at most so many characters; longer ones end in an ellipsis."""
    # A name may be as long as a book: the end of such a text is not looked at.
    line = " ".join(text[: 4 * most].split())
    return line if len(line) <= most else f"{line[: most - 1]}…"
