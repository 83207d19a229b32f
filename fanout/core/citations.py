"""Citations in a text: ``[s-7kq2m9x]`` names a source that its writer was shown.

What a model writes is brought to one form: one pair of brackets for each id, with any dashes, brackets
and look-alike letters (``fanout.core.citation_forms``). A citation of what the model was not shown
becomes ``[unknown source]``, and behind a quote that does not stand in its source comes
``[quote not found]`` (``fanout.core.quotations``). To check a checked text again changes nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from fanout.core.citation_forms import (
    AROUND,
    BARE,
    BRACKETS,
    ID_CHARS,
    folded,
    id_of,
    is_citation,
    is_invented,
    is_lead,
    words_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

__all__ = [
    "CITED",
    "ID_CHARS",
    "LOST_QUOTE",
    "UNKNOWN",
    "Citations",
    "cited_ids",
    "ids_in",
    "mapped_strings",
    "pieces",
    "strings_in",
    "with_citations",
]

UNKNOWN = "[unknown source]"
LOST_QUOTE = "[quote not found]"

_ID = rf"s-[a-z2-7]{{{ID_CHARS}}}"
# A hostile text may have ids that overlap.
_ANYWHERE = re.compile(rf"(?=({_ID}))", re.IGNORECASE)
CITED = re.compile(rf"\[({_ID})\]")
# Fields of a schema whose texts may be ids and nothing else.
_SOURCE_FIELD = re.compile(r"sourc|cit|refer|evidence", re.IGNORECASE)
# A longer value of a field for sources is no list of ids.
_SHORT_CHARS = 4000
_ANY_BRACKET = re.compile(r"[\[\]\u3010\u3011]")


class Citations(NamedTuple):
    """A text with its citations in one form, and the citations in it that are not real."""

    text: str
    unknown: tuple[str, ...]


def with_citations(
    text: str,
    known: Collection[str],
    *,
    is_source: bool = False,
    is_text: Callable[[str], bool] | None = None,
) -> Citations:
    """Return a text with its citations in one form; those that are not real are marked.

    Args:
        text: The text.
        known: The ids that its writer was shown.
        is_source: Whether the text is the value of a field for sources: an id needs no brackets there.
        is_text: Whether what looks like an id, in lower case, is a word of the sources; outside of
            brackets it is no citation then.
    """
    unknown: list[str] = []
    whole = folded(text.strip()) if len(text) <= _SHORT_CHARS else ""
    if whole in known:
        return Citations(whole, ())
    if is_source and whole.startswith("s-"):
        made = _in_brackets(words_of(_ANY_BRACKET.sub(" ", text)), known, unknown)
        return Citations(made, tuple(unknown))

    def cited(match: re.Match[str]) -> str:
        words = words_of(match["words"])
        if not words or not is_citation(words[0], known):
            return match[0]
        # Markdown escapes both brackets.
        before = match["escape"][:-1] if match["words"].endswith("\\") else match["escape"]
        return before + _in_brackets(words, known, unknown)

    def bare(match: re.Match[str]) -> str:
        # An id that was shown, and stands without brackets, is meant as a citation, too.
        one = folded(match["id"])
        if one in known:
            return f"[{one}]"
        is_open = match["open"] is not None and is_citation(match["id"], known)
        if not is_open and (not is_invented(match) or (is_text is not None and is_text(one))):
            return match[0]
        unknown.append(match["id"])
        return UNKNOWN if is_open else (match["open"] or "") + UNKNOWN

    text = BRACKETS.sub(cited, text)
    parts = CITED.split(text)
    parts[::2] = [BARE.sub(bare, part) for part in parts[::2]]
    parts[1::2] = [f"[{one}]" for one in parts[1::2]]
    return Citations("".join(parts), tuple(dict.fromkeys(unknown)))


def _in_brackets(words: list[str], known: Collection[str], unknown: list[str]) -> str:
    made: dict[str, None] = {}
    others = []
    for word in words:
        bare = id_of(word)
        if bare in known:
            made[f"[{bare}]"] = None
        elif is_citation(word, known):
            unknown.append(word.strip(AROUND))
            made[UNKNOWN] = None
        elif not is_lead(word):
            others.append(word)
    return "".join(made) + (f" ({' '.join(others)})" if others else "")


def cited_ids(text: str, known: Collection[str]) -> Counter[str]:
    """Return how often each id is cited in a checked text or JSON; only known ones count."""
    return Counter(one for one in _ANYWHERE.findall(text) if one in known)


def ids_in(text: str) -> set[str]:
    """Return all that looks like an id in a text, wherever it stands, in lower case."""
    return {one.lower() for one in _ANYWHERE.findall(text)}


def pieces(text: str, known: Collection[str]) -> list[tuple[str, str | None]]:
    """Return a checked text in pieces: plain ones, with None, and citations, with their ids."""
    parts = CITED.split(text)
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
