"""How much of a reference text a reader has found."""

from __future__ import annotations

import unicodedata
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["found_chars", "words"]

# Scripts without spaces between words: Han, kana and Hangul (in which lines may break anywhere).
_UNSPACED = (("\u2e80", "\u9fff"), ("\uac00", "\ud7af"), ("\uf900", "\ufaff"))


def words(text: str) -> Iterator[str]:
    """Yield the words of a text: letters, digits and marks; one character where words are unspaced.

    Markup and punctuation do not count, as readers may write them differently.
    """
    word: list[str] = []
    for character in unicodedata.normalize("NFKC", text):
        is_part = unicodedata.category(character)[0] in "LMN"
        is_unspaced = any(first <= character <= last for first, last in _UNSPACED)
        if word and (is_unspaced or not is_part):
            yield "".join(word)
            word = []
        if is_unspaced and is_part:
            yield character
        elif is_part:
            word.append(character)
    if word:
        yield "".join(word)


def found_chars(reference: str, found: str) -> tuple[int, int, int]:
    """Compare a text with its reference, word by word, in any order.

    Returns:
        The characters of words: of the reference; of these, found; and found beside the reference.
    """
    wanted, there = Counter(words(reference)), Counter(words(found))
    size = _chars(wanted)
    common = _chars(wanted & there)
    return size, common, _chars(there) - common


def _chars(counts: Counter[str]) -> int:
    return sum(len(word) * count for word, count in counts.items())
