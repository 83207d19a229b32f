"""HTML and SVG that cannot be broken out of: text is escaped unless it was made here."""

from __future__ import annotations

from html import escape

__all__ = ["Markup", "clean", "cut", "fragment", "one_line", "tag"]

# What a browser would hide, or obey: control characters get their pictures, so that they are seen;
# what changes the order of reading, and halves of characters become U+FFFD.
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

_VOID = frozenset({"col", "link", "meta"})


class Markup(str):
    """A piece of a page: what is in it was escaped where it had to be."""

    __slots__ = ()


def clean(text: str) -> str:
    """Return a text in which all is shown that a browser would hide or obey."""
    return text.replace("\r\n", "\n").replace("\r", "\n").translate(_SEEN)


def cut(text: str, most: int) -> str:
    """Return at most so many characters of a text, and how many there are more."""
    more = len(text) - most
    return text if more <= 0 else f"{text[:most]} … ({more:,} more characters)"


def one_line(text: str, most: int) -> str:
    """Return a text as one line of at most so many characters; longer ones end in an ellipsis."""
    # What does not fit is not looked at: a name may be as long as a book.
    line = " ".join(text[: 4 * most].split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def fragment(*content: str | None) -> Markup:
    """Return pieces one after the other; None is nothing."""
    return Markup("".join(_content(piece) for piece in content if piece is not None))


def tag(name: str, /, *content: str | None, **attributes: str | float | bool | None) -> Markup:
    """Return an element.

    Args:
        name: Of the element.
        content: What is in it, one after the other; None is nothing.
        attributes: A final underscore is left off, others become hyphens; None is no attribute,
            True one without a value.
    """
    given = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{fragment(*content)}</{name}>")


def _content(piece: str) -> str:
    return piece if isinstance(piece, Markup) else escape(clean(piece), quote=False)


def _attribute(name: str, value: str | float | bool | None) -> str:  # noqa: FBT001 - True is a value
    if value is None:
        return ""
    name = name.removesuffix("_").replace("_", "-")
    if value is True:
        return f" {name}"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return f' {name}="{escape(clean(text))}"'
