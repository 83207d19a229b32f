"""What does not fit into memory gives the same aggregates as what does."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from itertools import groupby

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanout.aggregators import Fields, GroupedAggregates, Item, aggregate_groups, whole
from fanout.aggregators.base import place
from fanout.aggregators.folding import Merged, folded
from fanout.core.json_text import identity
from fanout.system.external_sort import Scratch

SCHEMA = {"type": "object", "properties": {"a": {}, "b": {}, "c": {}}}
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, 1.0, -0.0, 2.5, 10**30, 1e300, "1", "x", "X.", "null", "x (2)", ""]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    ),
    max_leaves=8,
)
ANSWERS = st.one_of(st.none(), VALUES.map(json.dumps), st.sampled_from(["Score: 7", "no", "7/10"]))
BRANCHES = st.lists(st.tuples(ANSWERS, st.sampled_from(["g", "h", "i"])), max_size=40)
SOME = settings(deadline=None, max_examples=50)
SMALL = st.sampled_from([1, 500, 3_000])


def items_of(branches):
    return [
        Item(index=at, document=f"d{at // 2}", group=group, output=answer, columns={"n": at % 3})
        for at, (answer, group) in enumerate(branches)
    ]


WAYS = {
    "concat": [Fields()],
    "merge": [Fields(), Fields(by=("a",)), Fields(by=("n",))],
    "rank": [Fields(), Fields(k=1), Fields(k=3), Fields(by=("-a",)), Fields(by=("n",), k=2)],
    "top": [Fields(k=2), Fields(by=("a",))],
    "vote": [
        Fields(),
        Fields(schema=SCHEMA),
        Fields(by=("output",), schema=SCHEMA),
        Fields(by=("a",)),
        Fields(by=("a",), schema=SCHEMA),
        Fields(by=("n",), schema=SCHEMA),
    ],
    "table": [
        Fields(),
        Fields(by=("a",), measures=("count", "share", "mean:b")),
        Fields(by=("a", "b.*", "n"), measures=("count", "sum:a", "min:n")),
        Fields(by=("a", "b.*"), measures=("count", "sum:c.a"), schema=SCHEMA),
        Fields(measures=("count",), schema=SCHEMA),
    ],
}


@SOME
@pytest.mark.parametrize(
    ("name", "fields"), [(name, fields) for name, some in WAYS.items() for fields in some]
)
@given(branches=BRANCHES, memory_bytes=SMALL)
def test_every_aggregator_is_the_same_with_next_to_no_memory(name, fields, branches, memory_bytes):
    items = items_of(branches)
    made = aggregate_groups(name, items, fields, scratch=Scratch(memory_bytes=memory_bytes))
    in_memory = aggregate_groups(name, items, fields)
    assert msgspec.json.encode(made) == msgspec.json.encode(in_memory)
    assert list(made) == list(dict.fromkeys(item.group for item in items))


@SOME
@given(values=st.lists(VALUES, max_size=12), memory_bytes=SMALL)
def test_values_are_merged_outside_memory_as_in_it(values, memory_bytes):
    placed = [((at, 0), msgspec.json.encode(value)) for at, value in enumerate(values)]
    made = b"".join(folded(iter(placed), Scratch(memory_bytes=memory_bytes)))
    merged = Merged()
    for value in values:
        merged.take(value)
    assert json.dumps(json.loads(made)) == json.dumps(merged.value())


@SOME
@given(branches=BRANCHES, memory_bytes=SMALL)
def test_concat_joins_answers_under_their_places(branches, memory_bytes):
    items = items_of([(answer, "") for answer, _ in branches])
    answers = [item for item in items if item.output is not None]
    places = [(where, [one.output for one in some]) for where, some in groupby(answers, key=place)]
    parts = ["\n\n".join(outputs) for _, outputs in places]
    if len(parts) > 1:
        heads = [f"## {where}\n\n" for where, _ in places]
        parts = [head + part for head, part in zip(heads, parts, strict=True)]
    made = aggregate_groups("concat", items, scratch=Scratch(memory_bytes=memory_bytes))
    assert [one.value for one in made.values()] == (["\n\n".join(parts)] if items else [])


@SOME
@given(
    scores=st.lists(st.one_of(st.integers(0, 3), st.none()), min_size=1, max_size=40),
    k=st.one_of(st.none(), st.integers(1, 5)),
    memory_bytes=SMALL,
    data=st.data(),
)
def test_a_ranking_is_a_stable_sort_that_is_cut(scores, k, memory_bytes, data):
    items = [
        Item(index=at, document="d", output="none" if score is None else str(score))
        for at, score in enumerate(scores)
    ]
    ranked = sorted(range(len(scores)), key=lambda at: -1 if scores[at] is None else scores[at],
                    reverse=True)  # fmt: skip
    ranked.sort(key=lambda at: (scores[at] is None, -(scores[at] or 0), at))
    with GroupedAggregates("rank", Fields(k=k), Scratch(memory_bytes=memory_bytes)) as groups:
        for item in data.draw(st.permutations(items)):
            groups.add(item)
        [(_, made)] = groups.results()
        made = whole(made)
    assert [row["index"] for row in made.value] == ranked[:k]
    assert [row["score"] for row in made.value] == [scores[at] for at in ranked[:k]]
    counts = Counter(scores)
    last = scores[ranked[:k][-1]]
    left = counts[last] - sum(row["score"] == last for row in made.value)
    assert any(f"{left:,} left out" in note for note in made.notes) == bool(left)


@SOME
@given(answers=st.lists(SCALARS, min_size=1, max_size=40), memory_bytes=SMALL)
def test_a_vote_counts_each_answer_once_under_a_name_of_its_own(answers, memory_bytes):
    items = items_of([(json.dumps({"a": one}), "") for one in answers])
    fields = Fields(by=("a",), schema=SCHEMA)
    made = aggregate_groups("vote", items, fields, scratch=Scratch(memory_bytes=memory_bytes))
    votes = made[""].value["votes"]
    counts = Counter(map(identity, answers))
    # A dict keeps the order in which they were first seen.
    assert list(votes.values()) == list(counts.values())


def test_a_value_must_be_read_only_as_far_as_it_is_wanted():
    with GroupedAggregates("concat", scratch=Scratch(memory_bytes=1)) as groups:
        for item in items_of([("one", "g"), ("two", "h"), ("three", "g"), ("four", "i")]):
            groups.add(item)
        read = []
        for group, made in groups.results():
            if group != "g":
                read.append(whole(made).value)
    assert read == ["two", "four"]


@pytest.mark.parametrize("by", [(), ("output",)])
def test_a_vote_on_whole_answers_has_them_in_groups_that_wait_in_a_file(by):
    answers = [f'{{"a": {at % 3}}}' for at in range(6)]
    items = items_of([(answer, f"group {at}") for at, answer in enumerate(answers)])
    fields = Fields(by=by, schema=SCHEMA)
    made = aggregate_groups("vote", items, fields, scratch=Scratch(memory_bytes=1))
    assert [one.value["winner"] for one in made.values()] == ["0", "1", "2"] * 2


def test_each_group_without_an_answer_has_the_row_of_a_table_without_values():
    items = items_of([(None, "g"), (None, "h"), (None, "i")])
    for memory_bytes in (1, 8_000_000):
        made = aggregate_groups("table", items, scratch=Scratch(memory_bytes=memory_bytes))
        assert {group: one.value for group, one in made.items()} == {
            group: [{"count": 0}] for group in "ghi"
        }


@pytest.mark.parametrize("name", [*WAYS, "map_rerank"])
def test_what_is_held_does_not_grow_with_the_number_of_groups(name):
    """The branches of a thousand groups come in any order; a handful of groups fits into memory."""
    items = [
        Item(index=at, document=f"d{at}", group=f"group {at * 7919 % 1_000}", output=str(at % 10),
             columns={"n": at, "other": "x" * 1_000})
        for at in range(3_000)
    ]  # fmt: skip
    fields = Fields(by=("n",)) if name in ("rank", "top") else Fields()
    with GroupedAggregates(name, fields, Scratch(memory_bytes=20_000)) as groups:
        tracemalloc.start()
        try:
            for item in items:
                groups.add(item)
            found = Counter(group for group, made in groups.results() if whole(made).succeeded == 3)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert list(found) == list(dict.fromkeys(item.group for item in items))
    assert set(found.values()) == {1}
    # The blocks of the files that are merged; the groups themselves would take twice as much.
    assert peak_bytes < 2_000_000


@pytest.mark.parametrize(
    "answer",
    [
        lambda at: '{"a":' * 20 + json.dumps([f"{at}" + "x" * 10_000]) + "}" * 20,
        lambda at: '{"a":1,"b":' * 20 + json.dumps(f"{at}" + "x" * 10_000) + "}" * 20,
        lambda at: '{"a":' * 20 + json.dumps({f"{at}" + "x" * 10_000: 1}) + "}" * 20,
        lambda at: json.dumps("last" if at == 89 else {"a": [at] * 10_000}),
    ],
    ids=["deep", "deep and wide", "deep keys", "a value at the end"],
)
def test_what_a_merge_holds_does_not_grow_with_the_depth_of_answers(answer):
    with GroupedAggregates("merge", scratch=Scratch(memory_bytes=1_000_000)) as groups:
        for at in range(90):
            groups.add(Item(index=at, document="d", output=answer(at)))
        [(_, made)] = groups.results()
        tracemalloc.start()
        try:
            size = sum(map(len, made.chunks))
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert size > 900_000
    assert peak_bytes < 5_000_000


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"by": ("a",)}, '{"a":1.0,"a.b":3}'),
        ({"by": ("column.a",)}, "{}"),
        ({"measures": ("mean:c", "count")}, '{"c":[{}]}'),
        ({"by": ("output",)}, None),
        ({"by": ("output.*.a",), "measures": ("sum:c",)}, None),
        ({"by": ("a",), "schema": None}, None),
        ({}, "{}"),
    ],
)
def test_of_an_answer_that_is_counted_only_what_is_gone_by_waits_in_a_file(fields, kept):
    output = '{"a": 1.0, "b": "x", "a.b": 3, "ab": 4, "c": [{}]}'
    assert Fields(**{"schema": SCHEMA, **fields}).slim(output) == (kept or output)
    for other in ("[1]", "no", "7"):
        assert Fields(**{"schema": SCHEMA, **fields}).slim(other) == other
