"""The prompts by which a model says whether two values name the same thing, and what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from fanout.inputs.fences import block

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["is_same", "resolution_prompt"]

_HEAD = """Two values of the field {field} come from answers about different documents. Say whether they \
name the same thing."""
_TAIL = """They are the same if they differ only in how they are written: spelling, case, abbreviation, word \
order, language, a title or a legal form. They are not the same if they are only related, such as a company \
and its subsidiary, two people of one name, or two versions. Write your reasons first, in a sentence. If you \
cannot tell, they are not the same."""
# A value is a name: of a longer text, the beginning says enough.
_MOST_CHARS = 2_000


def resolution_prompt(
    field: str, one: str, other: str, criteria: Sequence[str] = (), *, is_fenced: bool = True
) -> str:
    """Return the prompt about two values.

    Args:
        field: The name of their field.
        one: A value.
        other: Another one.
        criteria: What the job says of when values are the same.
        is_fenced: Whether fences stand around values, which these cannot forge; else plain tags.
    """
    around = block if is_fenced else _tagged
    blocks = [
        around(name, text[:_MOST_CHARS]) for name, text in (("value_A", one), ("value_B", other))
    ]
    return "\n\n".join([_HEAD.replace("{field}", field), *criteria, _TAIL, *blocks])


def _tagged(name: str, text: str) -> str:
    return f"<{name}>\n{text}\n</{name}>"


def is_same(verdict: str) -> bool:
    """Return what a call says of two values."""
    return bool(msgspec.json.decode(verdict)["same"])
