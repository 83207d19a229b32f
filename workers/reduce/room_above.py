"""Has the nodes of a tree say which calls are above them, in a run with a budget.

See fanout.policy.tree_budgets.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from msgspec import structs

from fanout.policy.tree_budgets import above_columns, calls_above
from fanout.runs.token_counts import ANSWER_TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.aggregators import Node
    from fanout.core.records import Chunk
    from fanout.core.reduces import Reduce
    from fanout.core.spec import RunSpec

__all__ = ["is_only", "with_room_above"]


def with_room_above(
    chunk: Chunk, spec: RunSpec, reduce: Reduce, *, room_tokens: int, is_root: bool = False
) -> Chunk:
    """Return a node that says which calls are above it.

    Args:
        chunk: The node, whose position is its number in its level.
        spec: The job.
        reduce: Its reduce.
        room_tokens: Tokens of partial results that fit a prompt.
        is_root: Whether none is.
    """
    if is_root or not spec.budget.is_limited:
        return chunk
    above = calls_above(
        chunk.position + 1,
        room_tokens=room_tokens,
        partial_tokens=reduce.max_tokens or ANSWER_TOKENS,
    )
    return structs.replace(chunk, columns={**chunk.columns, **above_columns(above)})


def is_only(nodes: Iterator[Node], *, may_be: bool) -> Iterator[tuple[Node, bool]]:
    """Yield nodes, each with whether it is the only one; ``may_be`` says whether there can be only one."""
    if not may_be:
        for node in nodes:
            yield node, False
        return
    first, second = next(nodes, None), next(nodes, None)
    if first is not None:
        yield first, second is None
    for node in chain([] if second is None else [second], nodes):
        yield node, False
