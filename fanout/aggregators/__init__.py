"""Aggregators, which reduce the answers of a run, or of each group, to one value. No I/O."""

from fanout.aggregators.base import Aggregate, Item
from fanout.aggregators.grouping import (
    TooLargeError,
    aggregate_groups,
    group_key,
    make_accumulator,
)
from fanout.aggregators.llm import Part, leaf_parts, plan, render_input, room_tokens
from fanout.aggregators.parts import Fields
from fanout.aggregators.rank import row_place
from fanout.aggregators.scores import score_of

__all__ = [
    "Aggregate",
    "Fields",
    "Item",
    "Part",
    "TooLargeError",
    "aggregate_groups",
    "group_key",
    "leaf_parts",
    "make_accumulator",
    "plan",
    "render_input",
    "room_tokens",
    "row_place",
    "score_of",
]
