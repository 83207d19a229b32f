"""The forms in which models write ids of sources: other dashes, brackets, letters that look alike.

An id that was shown is recognised in each of them. What only looks like an id is a citation where it is in
brackets; elsewhere it is one if it looks random: the s-process of physics is none.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = [
    "AROUND",
    "BARE",
    "BRACKETS",
    "ID_CHARS",
    "folded",
    "id_of",
    "is_citation",
    "is_invented",
    "is_lead",
    "words_of",
]

# 35 bits of a hash: more than can be met by chance.
ID_CHARS = 7
# Around an id in brackets; Markdown has ^ before the name of a footnote, and \ before brackets.
AROUND = "\"'`*_.:()<>{}#^\\"

# The plain one is first, as in a set of characters it would mean a range elsewhere.
_HYPHENS = "-\u2010\u2011"
_UNSEEN = r"[\u00ad\u200b-\u200f\u2060-\u2064\ufeff]"
_ESS = r"[sS\u017f\uff33\uff53\u0455\u0405\ua731]"
_DASH = r"[_\-\u2010-\u2015\u2212\u02d7\u2043\ufe58\ufe63\uff0d]"
# Models write brackets of their own, and several ids in one pair.
_OPEN, _CLOSE = r"\[\u3010\uff3b\u3014", r"\]\u3011\uff3d\u3015"
BRACKETS = re.compile(
    rf"(?P<escape>\\?)[{_OPEN}](?P<words>[^{_OPEN}{_CLOSE}\n]{{1,4000}})[{_CLOSE}]"
)
BARE = re.compile(
    rf"(?P<open>[{_OPEN}]\s?\^?)?(?<![{_HYPHENS}\w])"
    rf"(?P<id>{_ESS}{_UNSEEN}{{0,3}}{_DASH}(?:{_UNSEEN}{{0,3}}[^\W_]){{{ID_CHARS}}})(?![{_HYPHENS}\w])"
)
_BETWEEN = re.compile(r"[\s,;/|+&\uff0c\uff1b\u3001]+")
_BEFORE = frozenset({"and", "ids", "id", "see", "source", "sources", "cf", "vgl", "und"})
_HIDDEN = re.compile(_UNSEEN)
# A digit before a letter, or five consonants: most ids of a hash have that, and few words.
_RANDOM = re.compile(
    rf"s-(?=[a-z0-9]{{{ID_CHARS}}}$)[a-z0-9]*?(?:[0-9][a-z]|[bcdfghjklmnpqrstvwxz]{{5}})"
)
# Parts of addresses and assignments are no citations.
_BEFORE_PARTS, _AFTER_PARTS = "/.=#@%~&?\\", "/=@%"
_ALIKE = str.maketrans(
    # Cyrillic and Greek letters that look as Latin ones do.
    "\u0430\u0441\u0501\u0435\u04bb\u0456\u0458\u043e\u0440\u051b\u0455\u0443\u0445\u051d\u03bf\u03b1\ua731",
    "acdehijopqsyxwoas",
) | dict.fromkeys(map(ord, "_\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u02d7\u2043"), "-")


def folded(word: str) -> str:
    """Return a word in lower case, with plain letters and dashes, and without what is not seen."""
    if not word.isascii():
        word = unicodedata.normalize("NFKC", _HIDDEN.sub("", word))
    return word.lower().translate(_ALIKE)


def id_of(word: str) -> str:
    """Return what a word in brackets is as an id."""
    return folded(word.strip(AROUND))


def words_of(text: str) -> list[str]:
    """Return the words of a pair of brackets, without those that only lead to the ids."""
    words = [one for one in _BETWEEN.split(text) if one.strip(AROUND)]
    while words and words[0].strip(AROUND).lower() in _BEFORE:
        del words[0]
    return words


def is_lead(word: str) -> bool:
    """Say whether a word only leads to ids: and, see, source."""
    return word.strip(AROUND).lower() in _BEFORE


def is_citation(word: str, known: Collection[str]) -> bool:
    """Say whether a word in brackets is meant as an id."""
    one = id_of(word)
    if one in known:
        return True
    if not one.startswith("s-"):
        return False
    # With another dash it may be a range, and with _ a name in a program.
    plain = unicodedata.normalize("NFKC", _HIDDEN.sub("", word.strip(AROUND)))
    return plain[1] in _HYPHENS or _RANDOM.match(one) is not None


def is_invented(match: re.Match[str]) -> bool:
    """Say whether a match of BARE that is no known id was meant as one, and is no word or part of a name."""
    word, text = match["id"], match.string
    before, after = (
        text[max(0, match.start("id") - 1) : match.start("id")],
        text[match.end() : match.end() + 2],
    )
    is_part = (before and before in _BEFORE_PARTS) or (after and after[0] in _AFTER_PARTS)
    if is_part or (after[:1] == "." and after[1:].isalnum()) or "_" in word or word != word.lower():
        return False
    return _RANDOM.match(folded(word)) is not None
