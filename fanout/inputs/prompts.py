"""Prompt templates: ``{name}`` is replaced, ``{{`` and ``}}`` are literal braces.

A template is parsed once. Values are inserted literally: text of a document is never parsed as a
template.

A name of fanout (``{document}``) and a column of the input (``{product}``) look the same. If a
column has the name of one of fanout's, the prompt must say which it means:
``{column.document}`` or ``{fanout.document}``. A colon in place of the point means the same.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING

import msgspec

from fanout.core.cells import COLUMN, OWN, cell_text, with_point
from fanout.core.errors import PromptError
from fanout.core.step_answers import STEPS
from fanout.inputs.fences import BLOCKS, PLAIN, Fenced, OwnText, block, inline, is_in_quotes

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from fanout.core.cells import Cell

__all__ = [
    "AGGREGATE_NAMES",
    "BRANCH_NAMES",
    "NEIGHBOUR_NAMES",
    "SPLIT_NAMES",
    "Template",
    "ambiguous",
    "near_hint",
]

BRANCH_NAMES = (
    "input",  # the text of the chunk
    "document",  # the name of its document
    "index",  # the 0-based number of the chunk in the run
    "aspect",  # the name of the prompt, if there are several
    "sample",  # the 0-based number of the sample
    "pages",  # the pages that the chunk is on, such as 3-4
    "headings",  # the path of headings above the chunk
)
# Those of a job with ``neighbours``.
NEIGHBOUR_NAMES = (
    "before",  # the text of the chunks before this one
    "after",  # the text of the chunks after it
)
# Those of a job whose documents a model splits.
SPLIT_NAMES = (
    "title",  # the title of the part
    "subtask",  # what to do, if the model proposes subtasks
)
# What a prompt of branches has with a field of the job only.
_NEEDED = {
    **dict.fromkeys(NEIGHBOUR_NAMES, "neighbours, the number of chunks"),
    **dict.fromkeys(SPLIT_NAMES, "split: model"),
    "context": "retrieve, where passages are looked for",
}
AGGREGATE_NAMES = (
    "input",  # the answers, joined
    "group",  # the name of their group
    "count",  # the number of answers
    "failed",  # the number of branches without an answer
)

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_EXCERPT = 24


class Template(msgspec.Struct, frozen=True):
    """A parsed template.

    Attributes:
        parts: Literal text and names in turn, text first: ``("Hi ", "name", "!")``.
        field: The job's field that holds the template, for messages.
        others: Names that it may have too, as those of earlier steps, for messages.
    """

    parts: tuple[str, ...]
    field: str = "prompt"
    others: tuple[str, ...] = ()

    @classmethod
    def parse(cls, source: str, *, field: str = "prompt") -> Template:
        """Parse a template. Raises PromptError for a misplaced brace."""
        return cls(tuple(_parts(source, field)), field)

    @property
    def names(self) -> frozenset[str]:
        """The names that are replaced."""
        return frozenset(self.parts[1::2])

    def columns(self, own: Collection[str]) -> frozenset[str]:
        """Return the columns that it needs; ``own`` are the names of fanout."""
        return frozenset(
            name.removeprefix(COLUMN)
            for name in self.names
            if name not in own and not name.startswith(OWN)
        )

    def require(
        self, own: Collection[str], *, columns: Collection[str] = (), needs_input: bool = True
    ) -> None:
        """Check that all names are known and unambiguous.

        Args:
            own: The names of fanout.
            columns: The columns of the input.
            needs_input: Whether ``input`` must be among them.

        Raises:
            PromptError: A name is unknown or ambiguous; the message lists the known names.
        """
        known = (*own, *(column for column in columns if column not in own))
        shown = sorted({*known, *self.others})
        listed = ", ".join(f"{{{name}}}" for name in shown)
        for name in sorted(self.names):
            if name in own and name in columns:
                raise PromptError(ambiguous(name), field=self.field)
            if name in known or name.removeprefix(OWN) in own:
                continue
            if name.removeprefix(COLUMN) in columns:
                continue
            needed = _NEEDED.get(name) if self._is_of_branches else None
            hint = f" it needs {needed};" if needed else near_hint(name, shown, "{{{}}}")
            raise PromptError(
                f"there is no {{{name}}};{hint} known: {listed}. "
                "A literal brace is doubled: {{ or }}",
                field=self.field,
            )
        if needs_input and not self.names & {"input", f"{OWN}input"}:
            raise PromptError(
                f"must contain {{input}}, where the text goes in (known: {listed})",
                field=self.field,
            )

    def render(
        self,
        values: Mapping[str, str],
        columns: Mapping[str, Cell] | None = None,
        *,
        is_fenced: bool = False,
    ) -> str:
        """Return the text with names replaced. For the arguments see ``pieces``."""
        return "".join(self.pieces(values, columns, is_fenced=is_fenced))

    def pieces(
        self,
        values: Mapping[str, str],
        columns: Mapping[str, Cell] | None = None,
        *,
        is_fenced: bool = False,
    ) -> list[str]:
        """Return the parts with names replaced.

        Args:
            values: The value of each name of fanout.
            columns: The cells of the input's columns. Only those that the template names are looked
                at: a cell may be a large list.
            is_fenced: Whether values that are not the user's own words stand between fences.

        Raises:
            PromptError: A name has no value.
        """
        out = list(self.parts)
        for i in range(1, len(out), 2):
            name = out[i]
            try:
                own, out[i] = name, values[name]
            except KeyError:
                own, out[i] = self._column_value(name, values, columns or {})
            if is_fenced and own not in PLAIN and not isinstance(out[i], OwnText):
                out[i] = self._fenced(own, out[i], i)
        return out

    @property
    def _is_of_branches(self) -> bool:
        """Whether it is what a model is asked, and not a query or how a model splits."""
        return self.field.startswith(("prompt", "aspects", "steps")) and self.field[-5:] != "query"

    @property
    def _is_of_reduce(self) -> bool:
        return self.field == "aggregate_prompt" or self.field.startswith("reduce.")

    def _fenced(self, own: str, value: str, at: int) -> str:
        """Return a value between fences; ``own`` is the name of fanout, empty for a column."""
        if isinstance(value, Fenced):
            return value.fenced
        if own in BLOCKS:
            is_answers = own == "input" and self._is_of_reduce
            return block("answers" if is_answers else BLOCKS[own], value)
        return inline(value, in_quotes=is_in_quotes(self.parts, at))

    def _column_value(
        self, name: str, values: Mapping[str, str], columns: Mapping[str, Cell]
    ) -> tuple[str, str]:
        """Return the value of a column, or of a name with the prefix ``column.`` or ``fanout.``.

        The name of fanout comes first, which is empty for a column.
        """
        if name in columns:
            return "", cell_text(columns[name])
        bare = name.removeprefix(COLUMN)
        if bare in columns:
            return "", cell_text(columns[bare])
        own = name.removeprefix(OWN)
        if own in values:
            return own, values[own]
        raise PromptError(
            f"this document has no column {bare!r}, which the prompt uses", field=self.field
        )


def near_hint(name: str, known: Iterable[str], form: str = "{}") -> str:
    """Return a question with the most similar known name, or an empty string.

    A step may be meant by its name alone: ``kind`` is near ``steps.kind``.
    """
    names = {one.removeprefix(STEPS): one for one in known}
    near = get_close_matches(name.removeprefix(STEPS), list(names), n=1)
    return f" did you mean {form.format(names[near[0]])}?" if near else ""


def ambiguous(name: str) -> str:
    """Return why a name is not clear that is one of fanout's and of a column."""
    return (
        f"{{{name}}} is not clear: the input has a column of this name, and fanout has its own; "
        f"write {{{COLUMN}{name}}} for the column, or {{{OWN}{name}}} for fanout's"
    )


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
        yield with_point(name)
        literal = []
    yield "".join([*literal, source[at:]])


def _misplaced(source: str, position: int, field: str) -> PromptError:
    excerpt = source[position : position + _EXCERPT].replace("\n", " ")
    return PromptError(
        f"the brace at character {position + 1} ({excerpt!r}) is not a placeholder like {{input}}; "
        "to write a literal brace, as in JSON, double it: {{ and }}",
        field=field,
    )
