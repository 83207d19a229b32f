"""The answers of groups that wait until they are complete."""

from __future__ import annotations

import random
import tracemalloc
from array import array
from collections import Counter, defaultdict

import pytest

from fanout.aggregators import Part
from fanout.policy.group_plans import PartitionGroups
from workers.reduce.group_parts import Leaf, complete_groups

PER_SHARD = 20
WORDS = "some words of an answer " * 200


class Leaves:
    """Branches of groups, in shards."""

    def __init__(self, of_branches, text=""):
        self.of_branches = of_branches
        self.text = text
        self.shards = [
            of_branches[first : first + PER_SHARD]
            for first in range(0, len(of_branches), PER_SHARD)
        ]

    def of_groups(self, shards, wanted):
        for shard in shards:
            for position, group in enumerate(self.shards[shard]):
                if group in wanted:
                    text = f"{shard}/{position} {self.text}"
                    part = Part(group=f"group {group}", text=text, count=1, failed=0)
                    yield Leaf(shard, position, group, part)
            yield shard

    @property
    def groups(self):
        places = defaultdict(list)
        for shard, names in enumerate(self.shards):
            for name in names:
                places[name].append(shard)
        return PartitionGroups(
            array("Q", places),
            array("I", (min(found) for found in places.values())),
            array("I", (max(found) for found in places.values())),
            array("I", map(len, places.values())),
        )

    def texts(self, group):
        return [
            f"{shard}/{position} {self.text}"
            for shard, names in enumerate(self.shards)
            for position, name in enumerate(names)
            if name == group
        ]


def shuffled(seed, groups, branches):
    chance = random.Random(seed)
    return [chance.randrange(groups) for _ in range(branches)]


@pytest.mark.parametrize("most_bytes", [1, 500, 5_000, 10**6])
@pytest.mark.parametrize("seed", range(4))
def test_each_group_is_found_once_with_all_its_answers_in_order(seed, most_bytes):
    leaves = Leaves(shuffled(seed, groups=30, branches=400))
    groups = leaves.groups
    left, passes = list(range(len(groups.hashes))), 0
    while left:
        passes += 1
        found = {}
        for at, [parts] in complete_groups(leaves, groups, left, most_bytes=most_bytes):
            assert at not in found
            found[at] = [part.text for part in parts]
        assert found == {at: leaves.texts(groups.hashes[at]) for at in found}
        assert found.keys() <= set(left)
        left = [at for at in left if at not in found]
    assert (passes == 1) is (most_bytes == 10**6)


def test_answers_are_read_again_only_as_often_as_the_file_has_no_room_for_them():
    leaves = Leaves(shuffled(1, groups=50, branches=1_000), text="x" * 1_000)
    left = list(range(50))
    passes = 0
    while left:
        passes += 1
        found = complete_groups(leaves, leaves.groups, left, most_bytes=500_000)
        ended = {at for at, _ in found}
        left = [at for at in left if at not in ended]
    # A megabyte, of which half of the room is left after each time that groups are left out.
    assert passes <= 4


def test_a_group_that_no_file_has_room_for_is_read_at_once():
    leaves = Leaves([0, 1] * 100, text="x" * 100)
    found = complete_groups(leaves, leaves.groups, [0, 1], most_bytes=1_000)
    assert [(at, len(parts)) for at, [parts] in found] == [(0, 100)]


def test_answers_that_wait_are_not_in_memory():
    leaves = Leaves(shuffled(1, groups=1_000, branches=4_000), text=WORDS)
    groups = leaves.groups
    size = sum(len(WORDS) for _ in leaves.of_branches)
    tracemalloc.start()
    try:
        chosen = range(len(groups.hashes))
        found = complete_groups(leaves, groups, chosen, most_bytes=10**9)
        counts = Counter({at: len(parts) for at, [parts] in found})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert counts.total() == 4_000
    assert peak < size / 10
