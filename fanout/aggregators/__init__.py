"""Aggregators, which reduce the answers of a run, or of each group, to one value. No I/O."""

from fanout.aggregators.base import Accumulator, Aggregate, Item
from fanout.aggregators.concat import Concat
from fanout.aggregators.grouping import aggregate_groups, group_key, make_accumulator
from fanout.aggregators.llm import Part, leaf_parts, plan, render_input, room_tokens
from fanout.aggregators.merge import Merge
from fanout.aggregators.rank import Rank, score_of
from fanout.aggregators.vote import Vote

__all__ = [
    "Accumulator",
    "Aggregate",
    "Concat",
    "Item",
    "Merge",
    "Part",
    "Rank",
    "Vote",
    "aggregate_groups",
    "group_key",
    "leaf_parts",
    "make_accumulator",
    "plan",
    "render_input",
    "room_tokens",
    "score_of",
]
