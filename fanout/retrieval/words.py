"""The words of texts in any language, by which passages are found."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["words_of"]

# Scripts that put no spaces between words, or (Korean) few: pairs of letters stand for words.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"  # kana and Han
    "\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
_BMP = 0x10000


# In ASCII, words are simple, and most texts are long.
_ASCII = re.compile(r"[a-z0-9]+")


@cache
def _pattern() -> re.Pattern[str]:
    # Vowel signs, as of Hindi, are no letters for ``re``, and must not end a word.
    marks = "".join(
        chr(code) for code in range(0x300, _BMP) if unicodedata.category(chr(code)) in ("Mn", "Mc")
    )
    letter = rf"[^\W_{_UNSPACED}]"
    return re.compile(rf"([{_UNSPACED}]+)|{letter}(?:{letter}|[{re.escape(marks)}])*")


def words_of(text: str) -> Iterator[str]:
    """Yield the words of a text in the order in which they stand, in one spelling.

    Upper and lower case are one, and so are full and half width. Of scripts without spaces between words,
    each pair of neighbouring letters is a word.
    """
    if text.isascii():
        yield from _ASCII.findall(text.lower())
        return
    text = unicodedata.normalize("NFKC", text)
    for match in _pattern().finditer(text.casefold()):
        run = match[1]
        if run is None:
            yield match[0]
        elif len(run) == 1:
            yield run
        else:
            for at in range(len(run) - 1):
                yield run[at : at + 2]
