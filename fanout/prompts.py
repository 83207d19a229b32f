"""Prompt templates: ``{name}`` is replaced, ``{{`` and ``}}`` are literal braces.

A template is parsed once. Values are put in as they are: what a document says is never read as a
template.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING

import msgspec

from fanout.errors import PromptError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

__all__ = ["AGGREGATE_NAMES", "BRANCH_NAMES", "Template"]

BRANCH_NAMES = (
    "input",  # the text of the chunk
    "document",  # the name of its document
    "index",  # the 0-based number of the chunk in the run
    "aspect",  # the name of the prompt, where there are several
    "sample",  # the 0-based number of the sample
)
AGGREGATE_NAMES = (
    "input",  # the answers, joined
    "group",  # the group that they belong to
    "count",  # how many answers they are
    "failed",  # how many are missing, because their branches failed
)

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_EXCERPT = 24


class Template(msgspec.Struct, frozen=True):
    """A parsed template.

    Attributes:
        parts: Literal text and names in turn, text first: ``("Hi ", "name", "!")``.
        field: The field of the job that it came from, for messages.
    """

    parts: tuple[str, ...]
    field: str = "prompt"

    @classmethod
    def parse(cls, source: str, *, field: str = "prompt") -> Template:
        """Parse a template. Raises PromptError where a brace is out of place."""
        return cls(tuple(_parts(source, field)), field)

    @property
    def names(self) -> frozenset[str]:
        """The names that are replaced."""
        return frozenset(self.parts[1::2])

    def require(self, known: Collection[str], must_have: str = "input") -> None:
        """Make sure that all names are known, and that ``must_have`` is one of them.

        Raises:
            PromptError: The message lists the known names.
        """
        listed = ", ".join(f"{{{name}}}" for name in sorted(known))
        for name in sorted(self.names.difference(known)):
            near = get_close_matches(name, known, n=1)
            hint = f" did you mean {{{near[0]}}}?" if near else ""
            raise PromptError(
                f"there is no {{{name}}};{hint} known: {listed}. "
                "A literal brace is doubled: {{ or }}",
                field=self.field,
            )
        if must_have not in self.names:
            raise PromptError(
                f"must contain {{{must_have}}}, where the text goes in (known: {listed})",
                field=self.field,
            )

    def render(self, values: Mapping[str, str]) -> str:
        """Return the text with names replaced. Raises PromptError for a name without a value."""
        out = list(self.parts)
        for i in range(1, len(out), 2):
            try:
                out[i] = values[out[i]]
            except KeyError:
                raise PromptError(
                    f"this document has no column {out[i]!r}, which the prompt uses",
                    field=self.field,
                ) from None
        return "".join(out)


def _parts(source: str, field: str) -> Iterator[str]:
    """Yield literal text and names in turn."""
    literal: list[str] = []
    at = 0
    for match in _TOKEN.finditer(source):
        literal.append(source[at : match.start()])
        at = match.end()
        if match[0] in {"{{", "}}"}:
            literal.append(match[0][0])
            continue
        name = (match[1] or "").strip()
        if not name or '"' in name or "\n" in name:
            raise _misplaced(source, match.start(), field)
        yield "".join(literal)
        yield name
        literal = []
    yield "".join([*literal, source[at:]])


def _misplaced(source: str, position: int, field: str) -> PromptError:
    excerpt = source[position : position + _EXCERPT].replace("\n", " ")
    return PromptError(
        f"the brace at character {position + 1} ({excerpt!r}) is not a placeholder like {{input}}; "
        "to write a literal brace, as in JSON, double it: {{ and }}",
        field=field,
    )
