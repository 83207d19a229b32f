"""What a call of a tree leaves of a budget: room for the calls above it, so that there is a root.

A budget may have no room for all calls of a tree. What its first calls have found must then not be lost: a
call is made only if those that fold what its level has so far can be made, too. The calls for which there
is no room end as ``budget``, and the tree goes on without what is below them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from fanout.core.budgets import Amounts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fanout.core.cells import Cell

__all__ = ["CallsAbove", "above_columns", "above_of", "calls_above", "kept_above"]

# How full a prompt is, and the tokens of the line that names a partial result.
_FULL = 0.8
_PLACE_TOKENS = 20
# The column of a node that says what is above it.
_COLUMN = "above"


class CallsAbove(NamedTuple):
    """The calls that fold what a level of a tree has so far.

    Attributes:
        calls: How many these are.
        levels: On how many levels.
    """

    calls: int
    levels: int


def calls_above(nodes: int, *, room_tokens: int, partial_tokens: int) -> CallsAbove:
    """Return the calls above a level of a tree, which is not that of its root.

    Args:
        nodes: The nodes of the level so far.
        room_tokens: Tokens of partial results that fit a prompt.
        partial_tokens: Tokens of a partial result, at most.
    """
    # A prompt holds two at least, cut if necessary.
    per_call = max(2, int(_FULL * room_tokens) // (partial_tokens + _PLACE_TOKENS))
    calls = levels = 0
    while not calls or nodes > 1:
        nodes = math.ceil(nodes / per_call)
        calls, levels = calls + nodes, levels + 1
    return CallsAbove(calls, levels)


def kept_above(most: Amounts, above: CallsAbove) -> Amounts:
    """Return what a call of a tree leaves for those above it.

    These are all calls; of money and tokens, what one call at each level may use, which is what several
    mostly do use.

    Args:
        most: The most that the call can use; those above it can use about as much.
        above: The calls above it.
    """
    return Amounts(
        nano_usd=above.levels * most.nano_usd,
        calls=above.calls,
        tokens=above.levels * most.tokens,
    )


def above_columns(above: CallsAbove) -> dict[str, Cell]:
    """Return the columns of a node that say what is above it."""
    return {_COLUMN: f"{above.calls} {above.levels}"}


def above_of(columns: Mapping[str, Cell]) -> CallsAbove | None:
    """Return what the columns of a node say is above it; None for a root, and without a budget."""
    told = columns.get(_COLUMN)
    if told is None:
        return None
    calls, levels = str(told).split()
    return CallsAbove(int(calls), int(levels))
