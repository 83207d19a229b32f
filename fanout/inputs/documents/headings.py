"""The headings of Markdown: the path of headings that each part of a text is below."""

from __future__ import annotations

import re

__all__ = ["headings_of"]

# Fences first: what is in a block of code is no heading. Of two lines, the second may underline.
_LINE = re.compile(
    r"^ {0,3}(?P<fence>`{3,}|~{3,})[^\n]*$"
    r"|^ {0,3}(?P<marks>\#{1,6})(?P<title>[ \t][^\n]*)?$"
    r"|^ {0,3}(?P<over>[^\s#>|`~*+-][^\n]*)\n {0,3}(?P<under>=+|-+)[ \t]*$",
    re.MULTILINE,
)
_MARKUP = re.compile(r"\\([!-/:-@\[-`{-~])|\*\*|__|!?\[([^\]\[\n]*)\]\([^()\n]*\)")
_MOST_CHARS = 120


def headings_of(text: str) -> list[tuple[int, str]]:
    """Return the offset of each heading of a Markdown text, with its path: ``Terms > Payment``."""
    if "#" not in text and "\n=" not in text and "\n-" not in text:
        return []
    found: list[tuple[int, str]] = []
    above: list[tuple[int, str]] = []
    fence = ""
    for match in _LINE.finditer(text):
        mark = match["fence"]
        if mark:
            if not fence:
                fence = mark
            elif mark[0] == fence[0] and len(mark) >= len(fence):
                fence = ""
            continue
        title = _plain(_without_end(match["title"] or "") or match["over"] or "")
        if fence or not title:
            continue
        level = len(match["marks"]) if match["marks"] else 1 if match["under"][0] == "=" else 2
        above = [*(one for one in above if one[0] < level), (level, title)]
        found.append((match.start(), " > ".join(name for _level, name in above)))
    return found


def _without_end(title: str) -> str:
    """Return a heading without the marks that may close it; they stand after white space."""
    line = title.rstrip(" \t")
    bare = line.rstrip("#")
    return bare if bare[-1:] in {" ", "\t", ""} else line


def _plain(title: str) -> str:
    """Return a heading without its markup."""
    plain = _MARKUP.sub(lambda match: match[1] or match[2] or "", title[: 2 * _MOST_CHARS])
    return " ".join(plain.split())[:_MOST_CHARS]
