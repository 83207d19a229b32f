"""Citations in a text: ``[s-7kq2m9x]`` names a source that its writer was shown.

What a model writes is brought to one form: one pair of brackets for each id. A citation of what the
model was not shown becomes ``[unknown source]``, and behind a quote that does not stand in its source
comes ``[quote not found]``. To check a checked text again changes nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

__all__ = [
    "ID_CHARS",
    "LOST_QUOTE",
    "UNKNOWN",
    "Citations",
    "Quote",
    "cited_ids",
    "ids_in",
    "mapped_strings",
    "pieces",
    "quotes",
    "strings_in",
    "with_citations",
    "with_quotes",
]

UNKNOWN = "[unknown source]"
LOST_QUOTE = "[quote not found]"
# 35 bits of a hash: more than can be met by chance.
ID_CHARS = 7

_ID = r"s-[a-z2-7]{7}"
_BARE = re.compile(rf"(?<![\w-]){_ID}(?![\w-])", re.IGNORECASE)
# A hostile text may have ids that overlap.
_ANYWHERE = re.compile(rf"(?=({_ID}))", re.IGNORECASE)
_CITED = re.compile(rf"\[({_ID})\]")
# Models write brackets of their own, and several ids in one pair.
_BRACKETS = re.compile(r"[\[\u3010]([^\[\]\u3010\u3011\n]{1,4000})[\]\u3011]")
_BETWEEN = re.compile(r"[\s,;/|+&]+")
_AROUND = "\"'`*_.:()<>{}#"
_BEFORE = frozenset({"and", "ids", "id", "see", "source", "sources", "cf", "vgl", "und"})
# Fields of a schema whose texts may be ids and nothing else.
_SOURCE_FIELD = re.compile(r"sourc|cit|refer|evidence", re.IGNORECASE)
_OPEN = r"[\"\u201c\u201d\u201e\u00ab\u00bb]"
_QUOTE = re.compile(
    rf"{_OPEN}(?P<words>[^\s\"\u201c\u201d\u201e\u00ab\u00bb]"
    r"(?:[^\"\u201c\u201d\u201e\u00ab\u00bb]{0,20000}[^\s\"\u201c\u201d\u201e\u00ab\u00bb])?)"
    rf"{_OPEN}(?P<behind>[\s.,;:!?*_)\u2026]{{0,8}})(?P<cited>(?:{_CITED.pattern}\s{{0,3}})+)"
)


class Citations(NamedTuple):
    """A text with its citations in one form, and the citations in it that are not real."""

    text: str
    unknown: tuple[str, ...]


class Quote(NamedTuple):
    """Words in quotes, and the ids that are cited for them."""

    words: str
    ids: tuple[str, ...]


def with_citations(text: str, known: Collection[str], *, is_source: bool = False) -> Citations:
    """Return a text with its citations in one form; those that are not real are marked.

    Args:
        text: The text.
        known: The ids that its writer was shown.
        is_source: Whether the text is the value of a field for sources: an id needs no brackets there.
    """
    unknown: list[str] = []
    whole = text.strip()
    if whole.lower() in known:
        return Citations(whole.lower(), ())
    if is_source and whole.lower().startswith("s-"):
        return Citations(UNKNOWN, (whole,))

    def cited(match: re.Match[str]) -> str:
        words = [one for one in _BETWEEN.split(match[1]) if one.strip(_AROUND)]
        while words and words[0].strip(_AROUND).lower() in _BEFORE:
            del words[0]
        if not words or not words[0].strip(_AROUND).lower().startswith("s-"):
            return match[0]
        return _in_brackets(words, known, unknown)

    text = _BRACKETS.sub(cited, text)
    # An id that was shown, and stands without brackets, is meant as a citation, too.
    parts = _CITED.split(text)
    parts[::2] = [_BARE.sub(lambda one: _bare(one[0], known), part) for part in parts[::2]]
    parts[1::2] = [f"[{one}]" for one in parts[1::2]]
    return Citations("".join(parts), tuple(dict.fromkeys(unknown)))


def _in_brackets(words: list[str], known: Collection[str], unknown: list[str]) -> str:
    made: dict[str, None] = {}
    others = []
    for word in words:
        bare = word.strip(_AROUND).lower()
        if bare in known:
            made[f"[{bare}]"] = None
        elif bare.startswith("s-"):
            unknown.append(word.strip(_AROUND))
            made[UNKNOWN] = None
        elif bare not in _BEFORE:
            others.append(word)
    return "".join(made) + (f" ({' '.join(others)})" if others else "")


def _bare(found: str, known: Collection[str]) -> str:
    return f"[{found.lower()}]" if found.lower() in known else found


def cited_ids(text: str, known: Collection[str]) -> Counter[str]:
    """Return how often each id is cited in a checked text or JSON; only known ones count."""
    return Counter(one for one in _ANYWHERE.findall(text) if one in known)


def ids_in(text: str) -> set[str]:
    """Return all that looks like an id in a text, wherever it stands, in lower case."""
    return {one.lower() for one in _ANYWHERE.findall(text)}


def quotes(text: str) -> Iterator[Quote]:
    """Yield the quotes of a checked text that have citations directly behind them."""
    for match in _QUOTE.finditer(text):
        yield Quote(match["words"], tuple(_CITED.findall(match["cited"])))


def with_quotes(text: str, is_found: Callable[[Quote], bool]) -> str:
    """Return a checked text in which the quotes that are not found are marked."""

    def checked(match: re.Match[str]) -> str:
        ids = tuple(_CITED.findall(match["cited"]))
        if is_found(Quote(match["words"], ids)):
            return match[0]
        at = match.start("behind") - match.start()
        return f"{match[0][:at]} {LOST_QUOTE}{match[0][at:]}"

    return _QUOTE.sub(checked, text)


def pieces(text: str, known: Collection[str]) -> list[tuple[str, str | None]]:
    """Return a checked text in pieces: plain ones, with None, and citations, with their ids."""
    parts = _CITED.split(text)
    found: list[tuple[str, str | None]] = []
    for at, part in enumerate(parts):
        if at % 2 and part in known:
            found.append((f"[{part}]", part))
        elif part:
            found.append((f"[{part}]" if at % 2 else part, None))
    return found


def strings_in(value: Any) -> Iterator[str]:
    """Yield the strings of a JSON value; the names of fields are none."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from strings_in(one)


def mapped_strings(
    value: Any, change: Callable[[str, bool], str], *, is_source: bool = False
) -> Any:
    """Return a JSON value with each of its strings changed; the names of fields stay.

    Args:
        value: The value.
        change: Returns the new string; it is also told whether the string is of a field for sources.
        is_source: Whether the value is of such a field.
    """
    if isinstance(value, str):
        return change(value, is_source)
    if isinstance(value, dict):
        return {
            name: mapped_strings(
                one, change, is_source=is_source or _SOURCE_FIELD.search(name) is not None
            )
            for name, one in value.items()
        }
    if isinstance(value, list):
        return [mapped_strings(one, change, is_source=is_source) for one in value]
    return value
