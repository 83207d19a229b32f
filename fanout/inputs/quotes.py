"""Where a quote stands in a text: exactly, with other white space and case, or with a few mistakes."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["QuotedText"]

# A quote of more characters was to have twelve words: it is looked for without mistakes only.
_MOST_CHARS = 200
# A quote with mistakes has a correct piece: shorter pieces stand anywhere.
_LEAST_FUZZY_CHARS = 16
_CHARS_PER_MISTAKE = 8
_MOST_PLACES = 12
# Searches with mistakes in one text: so many wrong quotes are no answer.
_MOST_SEARCHES = 200
_SAME = str.maketrans({
    "\u2018": "'", "\u2019": "'", "\u201a": "'", "\u201b": "'", "\u201c": '"', "\u201d": '"',
    "\u201e": '"', "\u00ab": '"', "\u00bb": '"', "\u2010": "-", "\u2011": "-", "\u2012": "-",
    "\u2013": "-", "\u2014": "-", "\u2212": "-", "\u00ad": "", "\u200b": "", "\ufeff": "",
    "\u201f": '"', "\u2039": "'", "\u203a": "'",
})  # fmt: skip
_DOTS = (".", "\u2026")
# A sentence that ends with a quote may have its point within.
_POINTS = ".,;: "
_LEFT_OUT = re.compile(r"\[?(?:\.\.\.|\u2026)\]?")


class QuotedText:
    """A text in which quotes are located.

    Args:
        text: The text.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._searches = 0

    def places(self, quote: str) -> Iterator[tuple[int, int]]:
        """Yield start and end of a quote in the text, in order; nothing if it is not there.

        Places without a mistake exclude others; those that differ in white space, case or forms of
        characters exclude those with mistakes, of which there is one for about eight characters.
        """
        quote = quote.strip()
        if not quote:
            return
        found = False
        at = self.text.find(quote)
        while at >= 0:
            found = True
            yield at, at + len(quote)
            at = self.text.find(quote, at + 1)
        if found:
            return
        wanted = _loose(quote)[0].strip()
        for dots in _DOTS:
            # A quote may be cut with dots.
            wanted = wanted.removesuffix(dots).removeprefix(dots).rstrip(".").strip()
        if not wanted:
            return
        loose, _ = self._loose
        at = loose.find(wanted)
        while at >= 0:
            found = True
            yield self._span(at, at + len(wanted))
            at = loose.find(wanted, at + 1)
        if not found:
            yield from self._with_mistakes(wanted)

    def has(self, quote: str) -> bool:
        """Say whether a quote stands in the text, but for white space, case and forms of characters.

        Parts of it may be left out, where it has dots or ``[...]`` in their place.
        """
        # Quotes within quotes have other marks than in the text, and models emphasise words.
        text = self._plain
        loose = [_one_mark(_loose(one)[0]).strip() for one in _LEFT_OUT.split(quote)]
        wanted = [one for one in (some.rstrip(_POINTS) for some in loose) if one]
        at = 0
        for one in wanted:
            at = text.find(one, at)
            if at < 0:
                return False
            at += len(one)
        return bool(wanted)

    @cached_property
    def _plain(self) -> str:
        return _one_mark(self._loose[0])

    @cached_property
    def _loose(self) -> tuple[str, list[int]]:
        return _loose(self.text)

    def _span(self, first: int, last: int) -> tuple[int, int]:
        """Return the span of the text that a span of its loose form stands for."""
        origins = self._loose[1]
        return origins[first], origins[last - 1] + 1

    def _with_mistakes(self, wanted: str) -> Iterator[tuple[int, int]]:
        """Yield the places with the fewest mistakes."""
        if len(wanted) < _LEAST_FUZZY_CHARS or self._searches >= _MOST_SEARCHES:
            return
        self._searches += 1
        if len(wanted) > _MOST_CHARS:
            return
        most = len(wanted) // _CHARS_PER_MISTAKE
        best, found = most, list[tuple[int, int]]()
        for low, high in self._candidates(wanted, most):
            mistakes, first, last = _nearest(wanted, self._loose[0][low:high])
            if mistakes > best:
                continue
            if mistakes < best:
                best, found = mistakes, []
            found.append((low + first, low + last))
        seen = set[int]()
        for first, last in sorted(found):
            if last > first and first not in seen:
                seen.add(first)
                yield self._span(first, last)

    def _candidates(self, wanted: str, most: int) -> Iterator[tuple[int, int]]:
        """Yield the spans that may have the quote: with so many mistakes, one piece of it has none."""
        loose, pieces = self._loose[0], most + 1
        size, taken = len(wanted) // pieces, list[int]()
        for number in range(pieces):
            piece = wanted[number * size : (number + 1) * size]
            at = loose.find(piece)
            places = 0
            while at >= 0 and places < _MOST_PLACES:
                low = max(0, at - number * size - most)
                near = bisect_right(taken, low)
                if not any(abs(one - low) <= most for one in taken[max(0, near - 1) : near + 1]):
                    taken.insert(near, low)
                    places += 1
                    yield low, min(len(loose), low + len(wanted) + 3 * most)
                at = loose.find(piece, at + 1)


def _one_mark(text: str) -> str:
    """Return a loose text with one form of quotes, and without Markdown's emphasis."""
    return text.replace('"', "'").replace("*", "")


def _loose(text: str) -> tuple[str, list[int]]:
    """Return a text in one case, with single spaces and plain marks, and where each character was."""
    out: list[str] = []
    origins: list[int] = []
    is_space = False
    for at, char in enumerate(text):
        if char.isspace():
            if not is_space:
                out.append(" ")
                origins.append(at)
            is_space = True
            continue
        plain = char if char.isascii() else unicodedata.normalize("NFKC", char).translate(_SAME)
        for one in plain.casefold():
            out.append(one)
            origins.append(at)
            is_space = False
    return "".join(out), origins


def _nearest(wanted: str, text: str) -> tuple[int, int, int]:
    """Return the fewest edits that make a part of a text the wanted one, and start and end of it."""
    mistakes, last = _best_end(wanted, text)
    # Backwards, the beginning is the end.
    near = text[max(0, last - len(wanted) - mistakes) : last]
    _, size = _best_end(wanted[::-1], near[::-1], is_anchored=True)
    return mistakes, last - size, last


def _best_end(wanted: str, text: str, *, is_anchored: bool = False) -> tuple[int, int]:
    """Return the fewest edits that make a part of a text the wanted one, and the last end of such a part.

    If ``is_anchored``, the part begins where the text does.

    Source: Myers, A fast bit-vector algorithm for approximate string matching (1999). Each number has
    a column of the table of edit distances, a bit for each character that is wanted.
    """
    mask, high = (1 << len(wanted)) - 1, 1 << (len(wanted) - 1)
    places: dict[str, int] = {}
    for at, char in enumerate(wanted):
        places[char] = places.get(char, 0) | 1 << at
    more, less, edits = mask, 0, len(wanted)
    best = (edits, 0)
    for at, char in enumerate(text, 1):
        same = places.get(char, 0)
        diagonal = same | less
        across = (((same & more) + more) ^ more) | same
        up, down = less | (~(across | more) & mask), more & across
        edits += bool(up & high) - bool(down & high)
        up, down = ((up << 1) | is_anchored) & mask, (down << 1) & mask
        more, less = down | (~(diagonal | up) & mask), up & diagonal
        if edits <= best[0]:
            best = (edits, at)
    return best
