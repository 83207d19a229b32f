"""Quotations in a checked text: pairs of quotation marks of any form, and what Markdown shows as one.

Each has the ids that its words must stand in: those that are cited directly behind it; else those of its
sentence, of its paragraph, or of the whole answer. So no quotation passes because its citation stands
elsewhere, or nowhere. Behind one that is not found comes ``[quote not found]``; to check a checked text again
changes nothing.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, NamedTuple

from fanout.core.citations import CITED, LOST_QUOTE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["Quote", "quotes", "with_quotes"]

# Marks by the kind of their pair. Straight and curly ones close each other, as writers mix them; in some
# languages both ends look the same, or are the other way round.
_ROUND, _ANGLE, _CORNER, _WHITE_CORNER, _TEX = range(5)
_MARKS = {
    _ROUND: ('"\uff02\u201f', "\u201c\u201e\u301d\u275d", "\u201d\u301e\u301f\u275e"),
    _ANGLE: ("", "\u00ab", "\u00bb"),
    _CORNER: ("", "\u300c\uff62\ufe41", "\u300d\uff63\ufe42"),
    _WHITE_CORNER: ("", "\u300e\ufe43", "\u300f\ufe44"),
}
_KINDS = {mark: kind for kind, some in _MARKS.items() for mark in "".join(some)}
_KINDS |= {"``": _TEX, "''": _TEX, "\u00b4\u00b4": _TEX}
_OPENING = frozenset("".join(some[1] for some in _MARKS.values())) - {"\u201c"} | {"``"}
_CLOSING = frozenset("".join(some[2] for some in _MARKS.values())) | {"\u00b4\u00b4"}
_NAMED = {"quot": '"', "#34": '"', "ldquo": "\u201c", "#8220": "\u201c", "rdquo": "\u201d",
          "#8221": "\u201d", "bdquo": "\u201e", "laquo": "\u00ab", "raquo": "\u00bb"}  # fmt: skip
_TOKEN = re.compile(
    # Programs are no prose.
    r"^[ \t]{0,3}```(?!(?:markdown|md|text|txt)\b)\w[^\n`]*\n(?:(?!^[ \t]{0,3}```).*\n?)*"
    rf"|\\?(?P<mark>[{''.join(one for one in _KINDS if len(one) == 1)}]|``|''|\u00b4\u00b4)"
    rf"|&(?P<named>{'|'.join(_NAMED)});"
    r"|<(?P<end>/?)(?P<tag>q|blockquote)(?:\s[^<>]{0,200})?>",
    re.IGNORECASE | re.MULTILINE,
)
_MOST_OPEN, _MOST_CHARS = 32, 20_000
_MARKED = f" {LOST_QUOTE}"
_LOST = re.compile(rf"[*_`)\]]{{0,3}} ?{re.escape(LOST_QUOTE)}")
# Of code; two of them may open a quote of TeX.
_TICKS = re.compile(r"(?:```|`)(?!`)")
# Before an opening mark and behind a closing one stand these, if no space does.
_LEADS = frozenset("([{<-/=:~*_`\u2010\u2011\u2012\u2013\u2014\u2015\u2212")
_ENDS = frozenset(".,;!?\u2026)]}[\u3002\uff0c\uff01\uff1f")
_FIRST_CJK = "\u2e80"

_SINGLES = r"'\u2018\u2019\u201a\u201b\u2039\u203a"
_DOUBLES = r"\"\uff02\u201c\u201d\u201e\u201f\u00ab\u00bb\u301d-\u301f\u300c-\u300f"
# Between a quote and its citation may stand points, dashes, brackets, code marks, and a name in brackets.
_BEHIND = re.compile(
    r"[\s.,;:!?*_`)(\u2026\u2010-\u2015\u2212\-]{0,8}"
    r"(?:\([^()\[\]\n]{1,60}\)[\s.,;:*_(\u2010-\u2015\-]{0,4})?"
    rf"(?P<cited>(?:{CITED.pattern}\s{{0,3}})+)"
)
# A single mark within a word is an apostrophe, a single word in such marks is no quote, and nothing is that
# begins with a word cut short.
_SINGLE_QUOTE = re.compile(
    rf"(?<![\w{_SINGLES}])(?<![{_SINGLES}]{re.escape(_MARKED)})[{_SINGLES}]"
    r"(?!(?:\d\ds?|tis|twas|em|til|cause|bout|n)\b)"
    rf"(?P<words>(?=[^\s{_SINGLES}]+\s)"
    rf"(?:[^{_SINGLES}{_DOUBLES}\n\[]|(?<=\w)['\u2019](?=\w)){{3,500}})(?<!\s)[{_SINGLES}](?![\w'])",
    re.IGNORECASE,
)
# What Markdown shows as a quotation: no notes, no lists, and nothing that has quotes of its own.
_QUOTATION = re.compile(
    r"^[ \t]{0,3}>(?![ \t]*(?:\*\*|__|[-+*]\s|[#\[>|]|\d+[.)]\s|"
    r"(?i:note|tip|hint|warning|important|summary)\b))"
    rf"(?P<words>[^\n\[>{_DOUBLES}]{{1,4000}}+(?:\n[ \t]{{0,3}}>[^\n\[>{_DOUBLES}]{{0,4000}}+){{0,40}}+)"
    rf"(?:(?P<cited>\s{{0,3}}(?:{CITED.pattern}[ \t]{{0,3}})+)|(?!\n[ \t]{{0,3}}>))(?=\.?$)",
    re.MULTILINE,
)
_NEXT_LINE = re.compile(r"\n[ \t]*>[ \t]*")
_SIGNED = re.compile(r"\s[\u2013\u2014\-]{1,2}\s*[^\n\u2014]{0,80}$|\s\([^()\n]{1,60}\)\s*$")
# A citation behind the point of a sentence is of that sentence.
_SENTENCE_END = re.compile(
    rf"(?<!\bDr)(?<!\bMr)(?<!\bMs)(?<!\bSt)(?<!\bNo)(?<!\bMrs)(?<!\bcf)(?<!\bvs)(?<!\be\.g)(?<!\bi\.e)"
    rf"(?:[.!?\u2026][*_`)\]{_SINGLES}{_DOUBLES}]{{0,4}}(?:\s?{re.escape(LOST_QUOTE)})?"
    rf"(?:\s{{0,3}}{CITED.pattern})*(?=\s)|[\u3002\uff01\uff1f])"
)
_PARAGRAPH_END = re.compile(r"\n[ \t>]*\n")


class Quote(NamedTuple):
    """Words in quotes, and the ids that they must stand in: one of these."""

    words: str
    ids: tuple[str, ...]


class _Found(NamedTuple):
    """A quote, and where a mark that it is not found is put: before what stands at ``cut``."""

    quote: Quote
    at: int
    cut: int


def quotes(text: str, cited: Sequence[str] = ()) -> Iterator[Quote]:
    """Yield the quotes of a checked text that are not marked as not found.

    Args:
        text: The text.
        cited: The ids that the whole answer cites, of which the text is a part.
    """
    return (found.quote for found in _quotes(text, cited))


def with_quotes(text: str, is_found: Callable[[Quote], bool], cited: Sequence[str] = ()) -> str:
    """Return a checked text in which the quotes that are not found are marked.

    Args:
        text: The text.
        is_found: Whether a quote stands in one of the sources of its ids.
        cited: As of ``quotes``.
    """
    parts: list[str] = []
    done = 0
    for found in sorted(_quotes(text, cited), key=lambda one: one.at):
        if not is_found(found.quote):
            parts += [text[done : found.at], _MARKED]
            if found.cut > found.at:
                # Behind a quotation of Markdown there is one space.
                parts.append(" ")
            done = found.cut
    return "".join([*parts, text[done:]])


def _quotes(text: str, cited: Sequence[str]) -> Iterator[_Found]:
    scopes = _Scopes(text, cited)
    pairs = _pairs(text)
    for first, start, end, last in pairs:
        words = text[start:end].strip(" \t\r\n\u00a0\u202f\u2009\\")
        if words and not _LOST.match(text, last):
            yield _Found(Quote(words, scopes.ids(first, last)), *(_behind(text, last),) * 2)
    starts = [pair[0] for pair in pairs]
    for match in _SINGLE_QUOTE.finditer(text):
        if not _is_within(match.start(), pairs, starts) and not _LOST.match(text, match.end()):
            quote = Quote(match["words"], scopes.ids(*match.span()))
            yield _Found(quote, *(_behind(text, match.end()),) * 2)
    for match in _QUOTATION.finditer(text):
        # Whose words they are is no part of them.
        words = _SIGNED.sub("", _NEXT_LINE.sub("\n", match["words"])).strip(" \t\n*_")
        if not words or _LOST.match(text, match.end("words")):
            continue
        ids = tuple(CITED.findall(match["cited"] or "")) or scopes.all
        at = match.start() + len(match[0][: match.end("words") - match.start()].rstrip())
        behind = match.end("words")
        while text[behind : behind + 1] == " ":
            behind += 1
        yield _Found(Quote(words, ids), at, behind if match["cited"] else at)


def _behind(text: str, last: int) -> int:
    """Return where a mark stands behind a quote: not within code, and not between its backticks."""
    ticks = _TICKS.match(text, last)
    return last if ticks is None else ticks.end()


def _is_within(at: int, pairs: Sequence[tuple[int, int, int, int]], starts: Sequence[int]) -> bool:
    number = bisect_right(starts, at) - 1
    return number >= 0 and at < pairs[number][3]


def _pairs(text: str) -> list[tuple[int, int, int, int]]:
    """Return the outermost pairs of marks, in order: start, start and end of the words, and end."""
    found: list[tuple[int, int, int, int]] = []
    opened: list[tuple[str, str, int, int]] = []
    for match in _TOKEN.finditer(text):
        mark = match["mark"] or _NAMED.get((match["named"] or "").lower(), "")
        kind = str(_KINDS[mark]) if mark else (match["tag"] or "").lower()
        if not kind:
            continue
        at = next((n for n in range(len(opened) - 1, -1, -1) if opened[n][0] == kind), None)
        first = None if at is None else opened[at][1]
        is_end = _is_end(text, match, mark, first) if mark else bool(match["end"])
        if is_end is False:
            opened.append((kind, mark, *match.span()))
            # Hostile texts open very many.
            del opened[:-_MOST_OPEN]
        elif is_end and at is not None:
            _, _, start, inner = opened[at]
            # What was opened within, and is still open, has no end.
            del opened[at:]
            if match.start() - inner <= _MOST_CHARS:
                while found and found[-1][0] > start:
                    found.pop()
                found.append((start, inner, *match.span()))
    return found


def _is_end(text: str, match: re.Match[str], mark: str, opened: str | None) -> bool | None:
    """Say whether a mark ends a quote, and does not begin one; None if it does neither.

    Args:
        text: The text.
        match: The mark in it.
        mark: The mark.
        opened: The mark that has begun the innermost quote of its kind that is open; None if there is none.
    """
    begin = match.start()
    if text.endswith(_MARKED, 0, begin):
        # A quote that ends directly before this mark has been checked.
        begin -= len(_MARKED)
    before = text[begin - 1 : begin]
    lost = _LOST.match(text, match.end())
    end = match.end() if lost is None or lost[0][:1] != " " else lost.end()
    behind = text[end : end + 1]
    if mark == "``" and "`" in (before, behind):
        return None
    if opened is None:
        # Behind a word, it is a sign of inches, or the end of what has no beginning.
        is_word = before.isalnum() and before < _FIRST_CJK
        is_cut = mark in ("''", *_CLOSING) and (not behind.strip() or mark == "\u00b4\u00b4")
        return None if mark not in _OPENING and (is_word or is_cut) else False
    if mark in _OPENING:
        return opened == "\u00bb"
    if mark in _CLOSING:
        return mark != opened or not _begins(before, behind)
    return not _begins(before, behind)


def _begins(before: str, behind: str) -> bool:
    """Say whether a quote within another one begins between two characters."""
    if not before.strip():
        return bool(behind.strip()) and behind not in _ENDS
    return before in _LEADS and behind.isalnum()


class _Scopes:
    """The ids that a text cites, by its sentences and paragraphs.

    Args:
        text: The text.
        cited: The ids that the whole answer cites.
    """

    def __init__(self, text: str, cited: Sequence[str]) -> None:
        found = list(CITED.finditer(text))
        self._text = text
        self._ids = [match[1] for match in found]
        self._at = [match.start() for match in found]
        self._ends = [
            [match.end() for match in form.finditer(text)]
            for form in (_SENTENCE_END, _PARAGRAPH_END)
        ]
        self._known: dict[tuple[int, int], tuple[str, ...]] = {}
        self.all = tuple(dict.fromkeys([*self._ids, *cited]))

    def ids(self, first: int, last: int) -> tuple[str, ...]:
        """Return the ids that the words in a span of the text must stand in: in one of them."""
        behind = _BEHIND.match(self._text, last)
        if behind is not None:
            return tuple(CITED.findall(behind["cited"]))
        for ends in self._ends:
            low, high = bisect_right(ends, first), bisect_left(ends, last)
            begin = ends[low - 1] if low else 0
            end = ends[high] if high < len(ends) else len(self._text)
            found = self._between(bisect_left(self._at, begin), bisect_left(self._at, end))
            if found:
                return found
        return self.all

    def _between(self, low: int, high: int) -> tuple[str, ...]:
        if (low, high) not in self._known:
            self._known[low, high] = tuple(dict.fromkeys(self._ids[low:high]))
        return self._known[low, high]
