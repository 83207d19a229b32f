"""The layout of prompts: what the prompts of one chunk share comes first where that is worth money.

Providers cache what prompts begin with. The aspects of a run share the text of the chunk, which their
templates often have at the end. In the order ``document_first`` a prompt begins with the text between
``<document>`` and ``</document>``, and where its template has ``{input}`` it refers to that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from fanout.core.cells import OWN
from fanout.core.units import page_range
from fanout.inputs.fences import OwnText, block
from fanout.inputs.prompts import NEIGHBOUR_NAMES

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from fanout.core.cells import Cell
    from fanout.core.records import BranchRef, Chunk
    from fanout.inputs.prompts import Template

__all__ = [
    "REFERENCE",
    "LaidOut",
    "branch_values",
    "common_parts",
    "document_first",
    "has_input",
    "in_order",
]

REFERENCE = "[the text in <document> above]"
# What differs between the branches of a chunk.
_OF_BRANCH = frozenset({
    "aspect", "sample", "context", f"{OWN}aspect", f"{OWN}sample", f"{OWN}context",
})  # fmt: skip
_INPUT = frozenset({"input", f"{OWN}input"})


def branch_values(
    chunk: Chunk, ref: BranchRef, sample: int, around: tuple[str, str] | None = None
) -> dict[str, str]:
    """Return the values of BRANCH_NAMES for a branch; ``around`` has those of NEIGHBOUR_NAMES."""
    values = {
        "input": chunk.text,
        "document": chunk.document,
        "index": str(ref.chunk if chunk.number is None else chunk.number),
        "aspect": ref.aspect or "",
        "sample": str(sample),
        "pages": page_range(chunk.pages),
        "headings": chunk.headings,
    }
    if chunk.title is not None:
        values.update(title=chunk.title, subtask=chunk.subtask)
    if around is not None:
        values.update(zip(NEIGHBOUR_NAMES, around, strict=True))
    return values


class LaidOut(msgspec.Struct, frozen=True):
    """A prompt.

    Attributes:
        text: All of it.
        shared: How many of its first characters the prompts of other aspects of its chunk share.
    """

    text: str
    shared: int


def common_parts(templates: Sequence[Template], varying: Collection[str] = ()) -> int:
    """Return how many of their first parts all templates share, and all branches of a chunk.

    ``varying`` are further names that may differ between the branches of a chunk.
    """
    count = 0
    for parts in zip(*(template.parts for template in templates), strict=False):
        if len(set(parts)) > 1 or (count % 2 and (parts[0] in _OF_BRANCH or parts[0] in varying)):
            break
        count += 1
    return count


def has_input(template: Template, parts: int) -> bool:
    """Say whether the first parts of a template have the text of the chunk."""
    return not _INPUT.isdisjoint(template.parts[1:parts:2])


def in_order(
    template: Template,
    values: Mapping[str, str],
    columns: Mapping[str, Cell],
    parts: int,
    *,
    is_fenced: bool = False,
) -> LaidOut:
    """Return a prompt as its template is written; its first ``parts`` are shared.

    Raises:
        PromptError: A name has no value.
    """
    pieces = template.pieces(values, columns, is_fenced=is_fenced)
    return LaidOut("".join(pieces), sum(map(len, pieces[:parts])))


def document_first(
    template: Template,
    values: Mapping[str, str],
    columns: Mapping[str, Cell],
    *,
    is_fenced: bool = False,
) -> LaidOut:
    """Return a prompt that begins with the text of its chunk.

    Raises:
        PromptError: A name has no value.
    """
    text = values["input"]
    head = block("document", text) if is_fenced else f"<document>\n{text}\n</document>"
    head += "\n\n"
    values = {**values, "input": OwnText(REFERENCE)}
    return LaidOut(head + template.render(values, columns, is_fenced=is_fenced), len(head))
