"""What is behind an aggregate: counted in pieces as in one go."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from fanout.aggregators import GroupedAggregates, Item, Part, Tally, lacking
from fanout.aggregators.coverage import missing_words
from fanout.aggregators.nodes import nodes_of
from fanout.core.records import ErrorKind
from fanout.system.external_sort import Scratch

KINDS = st.sampled_from([None, None, None, ErrorKind.TIMEOUT, ErrorKind.CONTENT_FILTER])
# How many chunks a document has, and how the branches of each chunk end.
DOCUMENTS = st.lists(st.lists(st.lists(KINDS, min_size=1, max_size=3), min_size=1, max_size=3))


def branches(documents):
    chunk = 0
    for document, chunks in enumerate(documents):
        for kinds in chunks:
            yield from ((document, chunk, kind) for kind in kinds)
            chunk += 1


def tallies(documents):
    return [
        Tally.of(document=document, chunk=chunk, kind=kind)
        for document, chunk, kind in branches(documents)
    ]


@settings(deadline=None, max_examples=50)
@given(documents=DOCUMENTS, data=st.data())
def test_counts_of_pieces_are_those_of_the_whole(documents, data):
    found = tallies(documents)
    size = data.draw(st.integers(1, 5))
    pieces = [Tally.total(found[at : at + size]) for at in range(0, len(found), size)]
    whole = Tally.total(pieces)
    assert whole == Tally.total(found)
    flat = list(branches(documents))
    coverage = whole.coverage()
    assert coverage.branches == len(flat)
    assert coverage.documents == len({one[0] for one in flat})
    assert coverage.documents_behind == len({one[0] for one in flat if one[2] is None})
    assert coverage.chunks_behind == len({one[1] for one in flat if one[2] is None})
    assert coverage.branches_behind + sum(coverage.missing.values()) == coverage.branches
    data = msgspec.json.encode(whole)
    assert msgspec.json.decode(data, type=Tally) == whole


def test_a_failed_call_of_the_reduce_loses_the_answers_that_it_was_to_take_in():
    one = Tally.total(tallies([[[None, ErrorKind.TIMEOUT]], [[None]]]))
    lost = one.without_answers(ErrorKind.TRUNCATED)
    coverage = Tally.total([lost, Tally.of(document=2, chunk=2, kind=None, is_cut=True)]).coverage()
    assert (coverage.branches, coverage.branches_behind) == (4, 1)
    assert (coverage.documents, coverage.documents_behind) == (3, 1)
    assert coverage.missing == {"timeout": 1}
    assert coverage.lost == {"truncated": 2}
    assert coverage.words == (
        "1 of 4 branches (25.0%), 1 of 3 documents; failed: timeout 1; "
        "lost with failed calls of the reduce: truncated 2; 1 cut off at a limit of tokens"
    )
    assert not coverage.is_whole
    assert coverage.to_dict()["share"] == 0.25


def test_each_group_is_counted_for_itself():
    groups = GroupedAggregates("vote", scratch=Scratch(memory_bytes=1))
    branches = [("a", 0, None), ("b", 0, None), ("a", 1, ErrorKind.LOST), ("c", 1, None)]
    with groups:
        for index, (group, document, kind) in enumerate(branches):
            output = "yes" if kind is None else None
            item = Item(index=index, document="d", group=group, output=output)
            groups.add(item, Tally.of(document=document, chunk=document, kind=kind))
        found = {group: tally for group, _, tally in groups.counted()}
    assert list(found) == ["a", "b", "c"]
    assert found["c"] == Tally.of(document=1, chunk=1, kind=None)
    assert lacking(found["b"], 1.0) is None
    assert lacking(found["a"], 0.5) is None
    problem = lacking(found["a"], 0.6)
    assert problem is not None
    assert problem.startswith("too little is behind it (min_group_success is 60.0%): 1 of 2 ")


def test_a_node_has_the_counts_of_its_parts_and_says_what_was_cut():
    parts = [
        Part(group="", text="x" * 6_000, tally=Tally.of(document=0, chunk=0, kind=None)),
        Part(group="", text="", count=0, failed=1,
             tally=Tally.of(document=1, chunk=1, kind=ErrorKind.TIMEOUT)),
        Part(group="", text="short", tally=Tally.of(document=1, chunk=2, kind=None)),
    ]  # fmt: skip
    nodes = list(nodes_of(parts, room_tokens=300, level=0))
    whole = Tally.total(node.tally for node in nodes)
    assert whole == Tally.total(part.tally for part in parts).with_cuts(cut=1)
    assert missing_words(whole) == [
        "1 of 3 answers are missing, by reason: timeout 1.",
        "Of 1 text only a beginning is shown.",
    ]
    assert missing_words(Tally.of(document=0, chunk=0, kind=None)) == []
