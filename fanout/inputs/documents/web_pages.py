"""Web pages as they are written: unclosed, and nested deeper than kreuzberg reads.

kreuzberg leaves out, without an error, what is nested deeper than about 60 elements, and takes an
element that is not closed as open to the end of the page.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MOST_DEPTH", "Scan", "lost_share", "repaired", "scan", "with_all_parts"]

# Deeper pages are repaired before kreuzberg reads them.
MOST_DEPTH = 50
_WRAPPER_DEPTH = 10
_REPAIRED_DEPTH = 40
# The bounds keep the time linear on pages with quotes that nobody closes.
_TOKEN = re.compile(
    r"<!--(?:.*?-->|.*)|<[!?][^<>]*+>"
    r"|<(?P<end>/?)(?P<name>[a-zA-Z][^\s/<>]*)"
    r"""(?:(?:[^<>"']++|"[^"]{0,4000}"|'[^']{0,4000}'){0,500}+>|[^<>]*+>)""",
    re.DOTALL,
)
_VOID = frozenset({
    "area", "base", "br", "col", "embed", "frame", "hr", "img", "input", "link", "meta", "param",
    "source", "track", "wbr",
})  # fmt: skip
# Elements without text of the page: raw ones end at their own end only.
_RAW_ENDS = {
    "script": re.compile(r"</script\b[^>]*>?", re.IGNORECASE),
    "style": re.compile(r"</style\b[^>]*>?", re.IGNORECASE),
}
_SKIPPED_END = re.compile(r"</(head|iframe|nav|noscript|svg|template)(?=[\s/>])", re.IGNORECASE)
_SKIPPED_BEGIN = re.compile(r"<(iframe|nav|noscript|svg|template)(?=[\s/>])", re.IGNORECASE)
# Elements that mean nothing in Markdown.
_MEANINGLESS = frozenset({
    "abbr", "acronym", "bdi", "bdo", "big", "blink", "center", "cite", "data", "dfn", "font",
    "ins", "label", "nobr", "ruby", "s", "samp", "small", "span", "time", "tt", "u", "var",
    "form", "nav",
})  # fmt: skip
_WRAPPERS = frozenset({
    "address", "article", "aside", "details", "dialog", "div", "fieldset", "figcaption", "figure",
    "footer", "header", "hgroup", "main", "search", "section", "summary",
})  # fmt: skip
_HEADINGS = frozenset(f"h{level}" for level in range(1, 7))
_BLOCKS = _HEADINGS | _WRAPPERS | frozenset({
    "blockquote", "center", "dd", "dl", "dt", "form", "hr", "li", "nav", "ol", "option", "p",
    "pre", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "ul", "caption", "select", "br",
})  # fmt: skip
# An open element of the second kind ends where one of the first begins, within the third.
_LISTS = frozenset({"ul", "ol", "dl"})
_TABLE = frozenset({"table"})
_CELLS = frozenset({"td", "th"})
_ROWS = frozenset({"tr", *_CELLS, "caption"})
_PARTS = frozenset({"thead", "tbody", "tfoot"})
_ENDS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "li": (frozenset({"li"}), _LISTS),
    **dict.fromkeys(("dt", "dd"), (frozenset({"dt", "dd"}), _LISTS)),
    **dict.fromkeys(_CELLS, (_CELLS, _TABLE | {"tr"})),
    "tr": (_ROWS, _TABLE),
    **dict.fromkeys(_PARTS, (_ROWS | _PARTS, _TABLE)),
    "option": (frozenset({"option"}), frozenset({"select"})),
}
# An end tag reaches no element outside of the cell that it is in.
_SCOPES = frozenset({"td", "th", "table"})
_TABLE_NAMES = _TABLE | _ROWS | _PARTS
_FORM = re.compile(r"<(/?)form(?=[\s/>])", re.IGNORECASE)
_LINK = re.compile(r"\]\([^()\n]*\)")


class Scan(NamedTuple):
    """What a page holds.

    Attributes:
        depth: How deep it nests where only written end tags close elements.
        text: Its visible text, without markup; blocks begin on a line of their own.
    """

    depth: int
    text: str


class _Token(NamedTuple):
    name: str
    is_end: bool
    raw: str


def _tokens(page: str) -> Iterator[_Token]:
    """Yield the tags of a page, and its text as tokens without a name, without what is not shown."""
    at = 0
    skipped, depth = "", 0
    # An element that is never closed holds the rest of the page.
    closed = _closed(page)
    while match := _TOKEN.search(page, at):
        if not skipped and match.start() > at:
            yield _Token("", is_end=False, raw=page[at : match.start()])
        at = match.end()
        name, is_end = (match["name"] or "").lower(), bool(match["end"])
        if name in _RAW_ENDS:
            end = _RAW_ENDS[name].search(page, at)
            at = at if is_end else end.end() if end else len(page)
        elif skipped:
            depth += 0 if name != skipped else -1 if is_end else 1
            skipped = skipped if depth else ""
        elif name in closed and not is_end:
            skipped, depth = name, 1
        elif name:
            yield _Token(name, is_end=is_end, raw=match[0])
    if not skipped:
        yield _Token("", is_end=False, raw=page[at:])


def _closed(page: str) -> frozenset[str]:
    """Return the elements without text of the page that are closed anywhere in it."""
    return frozenset(match[1].lower() for match in _SKIPPED_END.finditer(page))


def scan(page: str) -> Scan:
    """Return the text of a page, and how deep it nests."""
    above: list[str] = []
    are_open = Counter[str]()
    pieces: list[str] = []
    most = 0
    for name, is_end, raw in _tokens(page):
        if not name:
            pieces.append(raw)
            continue
        if name in _BLOCKS:
            pieces.append("\n")
        if is_end:
            _pop_to(name, above, are_open)
        elif name not in _VOID and not raw.endswith("/>"):
            above.append(name)
            are_open[name] += 1
            most = max(most, len(above))
    lines = (" ".join(line.split()) for line in html.unescape("".join(pieces)).split("\n"))
    return Scan(most, "\n".join(line for line in lines if line))


def _pop_to(name: str, above: list[str], are_open: Counter[str]) -> None:
    while are_open[name]:
        top = above.pop()
        are_open[top] -= 1
        if top == name:
            return


def lost_share(expected: str, made: str) -> float:
    """Return which share of the letters and digits of a text is missing in what was made of it."""
    letters = Counter({one: n for one, n in Counter(expected).items() if one.isalnum()})
    if not letters:
        return 0.0
    # Addresses of links are no words of the page.
    return (letters - Counter(_LINK.sub("]", made))).total() / letters.total()


def with_all_parts(page: str) -> str:
    """Return a page with other names for elements that kreuzberg would leave out with their text.

    These are forms, as some pages are one form, and menus and the like that nobody closes.
    """
    page = _FORM.sub(r"<\1div", page)
    closed = _closed(page)
    return _SKIPPED_BEGIN.sub(
        lambda match: match[0] if match[1].lower() in closed else "<div", page
    )


def repaired(page: str) -> str:
    """Return a page with all its text, whose elements are closed and nested less deeply."""
    made = _Repaired()
    for name, is_end, raw in _tokens(page):
        if not name:
            made.text(raw)
        elif is_end:
            made.end(name)
        else:
            made.start(name, raw)
    return made.closed()


class _Repaired:
    """Writes a page anew."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        # The names of the open elements, each with whether it was written.
        self._above: list[tuple[str, bool]] = []
        self._open = Counter[str]()
        self._depth = 0
        self._at_break = True

    def text(self, raw: str) -> None:
        self._pieces.append(raw)
        self._at_break = self._at_break and not raw.strip()

    def start(self, name: str, raw: str) -> None:
        """Open an element, and close those that end where it begins."""
        if name in _MEANINGLESS or "-" in name:
            self._break(name)
            return
        if name in _BLOCKS and name != "br":
            self._end_top("p", _SCOPES)
        if name in _HEADINGS:
            self._end_top(self._above[-1][0] if self._above else "", _SCOPES, only=_HEADINGS)
        if name in _ENDS:
            ends, within = _ENDS[name]
            for one in ends:
                self._end_top(one, within)
        if name in _VOID or raw.endswith("/>"):
            self._pieces.append(raw)
            return
        most = _WRAPPER_DEPTH if name in _WRAPPERS else _REPAIRED_DEPTH
        is_written = self._depth < most
        self._above.append((name, is_written))
        self._open[name] += 1
        if is_written:
            self._depth += 1
            self._pieces.append(raw)
            self._at_break = self._at_break or name in _BLOCKS
        else:
            self._break(name)

    def end(self, name: str) -> None:
        """Close an element; an end without a beginning is left out."""
        if name in _MEANINGLESS or "-" in name:
            self._break(name)
        elif name not in _VOID:
            self._end_top(name, frozenset() if name in _TABLE_NAMES else _SCOPES)

    def closed(self) -> str:
        """Close all that is open, and return the page."""
        while self._above:
            self._pop()
        return "".join(self._pieces)

    def _end_top(
        self, name: str, within: frozenset[str], only: frozenset[str] | None = None
    ) -> None:
        """Close the innermost element of a name, unless one of ``within`` is inside of it."""
        if not self._open[name] or (only is not None and name not in only):
            return
        for above, _ in reversed(self._above):
            if above == name:
                break
            if above in within:
                return
        while self._pop() != name:
            pass

    def _pop(self) -> str:
        name, is_written = self._above.pop()
        self._open[name] -= 1
        if is_written:
            self._depth -= 1
            self._pieces.append(f"</{name}>")
            self._at_break = self._at_break or name in _BLOCKS
        else:
            self._break(name)
        return name

    def _break(self, name: str) -> None:
        """Put an empty line where the mark of a block is left out."""
        if name in _BLOCKS and not self._at_break:
            self._pieces.append("<br><br>")
            self._at_break = True
