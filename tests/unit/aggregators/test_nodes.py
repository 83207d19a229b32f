"""Where the nodes of a tree end: by the parts near their end only, and as soon as it is known."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanout.aggregators import Part, part_key
from fanout.aggregators.nodes import NodePacker, nodes_of

ROOM = 300


def part(number, size=60, text=None, *, ok=True):
    text = ("x" * size if text is None else text) if ok else ""
    return Part(group="", text=text, count=int(ok), failed=int(not ok), key=part_key("d", number))


def texts_of(nodes):
    return [[one.text for one in node.parts] for node in nodes]


def packed(parts, level=0):
    return list(nodes_of(parts, room_tokens=ROOM, level=level))


def leaves(count, changed=None):
    return [
        part(n, text=f"answer {n} {'changed!' if n == changed else 'is here'}")
        for n in range(count)
    ]


def changes(before, after):
    """The prompts that were not there before."""
    known = {tuple(texts) for texts in texts_of(before)}
    return sum(tuple(texts) not in known for texts in texts_of(after))


@settings(max_examples=30, deadline=None)
@given(changed=st.integers(0, 399))
def test_one_changed_answer_changes_one_node(changed):
    assert changes(packed(leaves(400)), packed(leaves(400, changed))) == 1


@settings(max_examples=20, deadline=None)
@given(at=st.integers(0, 300), longer=st.integers(0, 4 * ROOM))
def test_a_longer_answer_or_one_more_changes_few_nodes(at, longer):
    before = leaves(300)
    grown = [*before[:at], part(at, text="y" * (longer + 1)), *before[at + 1 :]]
    added = [*before[:at], part("new", text="one more"), *before[at:]]
    for after in (grown, added):
        assert changes(packed(before), packed(after)) <= 12


def test_the_number_of_nodes_that_change_is_small_in_the_mean():
    before = leaves(300)
    counts = []
    for at in range(0, 300, 6):
        added = [*before[:at], part("new", text="one more"), *before[at:]]
        counts.append(changes(packed(before), packed(added)))
    assert sum(counts) / len(counts) < 2.5


@settings(deadline=None)
@given(
    given_parts=st.lists(st.tuples(st.integers(1, 1500), st.booleans()), max_size=80),
    level=st.integers(0, 2),
    data=st.data(),
)
def test_a_node_is_known_before_the_end_and_does_not_change_then(given_parts, level, data):
    parts = [part(n, size, ok=ok) for n, (size, ok) in enumerate(given_parts)]
    whole = packed(parts, level)
    count = data.draw(st.integers(0, len(parts)))
    packer = NodePacker(room_tokens=ROOM, level=level)
    early = [node for one in parts[:count] for node in packer.add(one)]
    assert early == whole[: len(early)]
    # All parts are in nodes, in order, unless no branch has an answer.
    taken = sum(node.taken for node in whole)
    assert taken == (len(parts) if any(one.text for one in parts) else 0)
    assert sum(node.failed for node in whole) == (sum(one.failed for one in parts) if whole else 0)
    assert all(node.count for node in whole)


def test_nodes_are_full_enough():
    nodes = packed(leaves(1000))
    tokens = [sum(len(one.text) for one in node.parts) for node in nodes[:-1]]
    assert sum(tokens) / len(tokens) > 0.75 * max(tokens)


def test_branches_without_an_answer_stay_where_they_are():
    parts = [part(n, ok=n % 3 != 2) for n in range(240)]
    nodes = packed(parts)
    assert len(nodes) > 5
    at = 0
    for node in nodes:
        behind = parts[at : at + node.taken]
        assert (node.count, node.failed) == (
            sum(one.count for one in behind),
            sum(one.failed for one in behind),
        )
        # Those that follow an answer are in its node.
        assert behind[0].text
        at += node.taken
    assert at == len(parts)


@pytest.mark.parametrize("level", [0, 1])
def test_a_row_of_failures_behind_a_full_node_is_not_looked_through_for_each(level, monkeypatch):
    looks = 0
    end = NodePacker._end

    def counted(packer):
        nonlocal looks
        looks += 1
        return end(packer)

    monkeypatch.setattr(NodePacker, "_end", counted)
    failures = [part(n, ok=False) for n in range(2, 1000)]
    parts = [part(0, 4 * ROOM), part(1, 4 * ROOM), *failures, part(1000)]
    assert sum(node.failed for node in packed(parts, level)) == len(failures)
    assert looks < 10
