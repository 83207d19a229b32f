"""Aggregators, which reduce the answers of a run, or of each group, to one value.

Their only I/O are temporary files for what does not fit into memory (``fanout.system.external_sort``).
"""

from fanout.aggregators.base import Aggregate, Held, Item
from fanout.aggregators.coverage import (
    Coverage,
    CoverageCounter,
    ScatteredTallies,
    Tally,
    TallyCounter,
    lacking,
)
from fanout.aggregators.grouping import (
    GroupedAggregates,
    aggregate_groups,
    group_key,
    make_accumulator,
)
from fanout.aggregators.later_groups import Grouped
from fanout.aggregators.llm import Part, leaf_part, part_tokens, render_input, room_tokens
from fanout.aggregators.nodes import Node, NodePacker, nodes_of, part_key
from fanout.aggregators.parts import Fields
from fanout.aggregators.rank import row_place
from fanout.aggregators.records import GroupedRecords
from fanout.aggregators.scores import score_of
from fanout.aggregators.sources import (
    CITING_RULE,
    RULE_TOKENS,
    Place,
    Source,
    cited_node,
    decode_places,
    encode_places,
    shown_texts,
    sources_of,
    with_sources,
)
from fanout.aggregators.streams import Streamed, covered, value_of, whole

__all__ = [
    "CITING_RULE",
    "RULE_TOKENS",
    "Aggregate",
    "Coverage",
    "CoverageCounter",
    "Fields",
    "Grouped",
    "GroupedAggregates",
    "GroupedRecords",
    "Held",
    "Item",
    "Node",
    "NodePacker",
    "Part",
    "Place",
    "ScatteredTallies",
    "Source",
    "Streamed",
    "Tally",
    "TallyCounter",
    "aggregate_groups",
    "cited_node",
    "covered",
    "decode_places",
    "encode_places",
    "group_key",
    "lacking",
    "leaf_part",
    "make_accumulator",
    "nodes_of",
    "part_key",
    "part_tokens",
    "render_input",
    "room_tokens",
    "row_place",
    "score_of",
    "shown_texts",
    "sources_of",
    "value_of",
    "whole",
    "with_sources",
]
