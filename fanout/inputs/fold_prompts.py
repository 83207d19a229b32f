"""What the prompt of an LLM aggregate says of how its calls fold answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.core.fold_words import NOTHING_TO_ADD, SCRATCHPAD

if TYPE_CHECKING:
    from fanout.core.reduces import Reduce

__all__ = ["aggregate_source"]

# The same words in each call: what it begins with is in its input.
_TURNS = """The answers come in turns, and this is one of them. If there is an answer so far, revise it by \
the further answers: keep what is right, add what is new, correct what they contradict. Write the whole \
answer, not only what has changed."""
_IN_TEXT = f"""If the further answers add nothing, write only: {NOTHING_TO_ADD}
Below the answer you may write a line {SCRATCHPAD}, and below that short notes for the next turn, such as \
counts or open questions. You see them again; nobody else does."""


def aggregate_source(reduce: Reduce) -> str:
    """Return the template of the calls of an LLM aggregate: that of the user, and how they fold answers."""
    given = reduce.prompt or "{input}"
    if not reduce.refines:
        return given
    rules = [_TURNS] if reduce.schema is not None else [_TURNS, _IN_TEXT]
    return "\n\n".join([given, *rules])
