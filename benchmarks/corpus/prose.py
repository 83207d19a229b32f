"""The contents of the corpus: real prose, with headings, lists and tables, in several scripts.

The prose is that of examples/amendments (the amendments to the US constitution, in the public
domain), and of Article 1 of the Universal Declaration of Human Rights in ``articles.json``.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

__all__ = ["Content", "Section", "content", "text_of"]

_HERE = Path(__file__).resolve().parent
_AMENDMENTS = _HERE.parents[1] / "examples/amendments"
# The number of sections of a document: most are short, a few are long.
_SIZES = [1, 1, 2, 2, 3, 3, 4, 5, 8, 12, 20, 40]
_MAX_PARAGRAPHS = 4


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a document under a heading; a table is rows of cells, the first its head."""

    heading: str
    paragraphs: list[str] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    table: list[list[str]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a document says, whatever its format; ``languages`` are those beside English."""

    title: str
    sections: list[Section]
    languages: list[str]


def text_of(content: Content) -> str:
    """Return all text of a document."""
    lines = [content.title]
    for section in content.sections:
        lines += [section.heading, *section.paragraphs, *section.items]
        lines += [" ".join(row) for row in section.table]
    return "\n".join(lines)


def content(number: int, languages: tuple[str, ...] | None = None) -> Content:
    """Return the content of the document of a number, which is always the same.

    Args:
        number: The number, which also seeds what it contains.
        languages: Those that its format can hold beside English; None is all.
    """
    choice = random.Random(number)  # noqa: S311 - to choose texts
    known = sorted(articles() if languages is None else set(languages))
    others = choice.sample(known, k=min(len(known), choice.choice([0, 1, 1, 3])))
    sections = [_section(choice, others) for _ in range(choice.choice(_SIZES))]
    if others and not any(section.paragraphs for section in sections):
        others = []
    return Content(title=f"File {number}: {choice.choice(_names())}", sections=sections,
                   languages=others)  # fmt: skip


def _section(choice: random.Random, others: list[str]) -> Section:
    name = choice.choice(_names())
    paragraphs = choice.choices(_paragraphs(), k=choice.randint(1, _MAX_PARAGRAPHS))
    if others:
        paragraphs.append(articles()[choice.choice(others)])
    items = [_first_words(one) for one in choice.choices(_paragraphs(), k=choice.choice([0, 0, 4]))]
    rows = choice.choices(_dates(), k=choice.choice([0, 0, 6]))
    table = [["Amendment", "Passed by Congress", "Ratified"], *rows] if rows else []
    return Section(heading=name, paragraphs=paragraphs, items=items, table=table)


def _first_words(paragraph: str) -> str:
    return " ".join(paragraph.split()[:9])


@cache
def articles() -> dict[str, str]:
    """Return the article by language."""
    return dict(json.loads((_HERE / "articles.json").read_text()))


@cache
def _texts() -> list[str]:
    return [path.read_text() for path in sorted(_AMENDMENTS.glob("*.txt"))]


@cache
def _names() -> list[str]:
    return [text.splitlines()[0].strip() for text in _texts()]


@cache
def _paragraphs() -> list[str]:
    parts = [" ".join(part.split()) for text in _texts() for part in text.split("\n\n")]
    return [part for part in parts if len(part) > len("Passed by Congress September 25, 1789.") * 2]


@cache
def _dates() -> list[list[str]]:
    """Return name, and dates of passing and ratification, of the amendments that have them."""
    pattern = re.compile(r"Passed by Congress ([^.]+)\.\s+Ratified ([^.\n]+)")
    found = ((name, pattern.search(text)) for name, text in zip(_names(), _texts(), strict=True))
    return [[name, match[1], match[2]] for name, match in found if match]
