"""The plan of groups: partitions that together have each group once, and are due when that is worth it."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from fanout.core.errors import StoredDataError
from fanout.core.group_hashes import decode_hashes, encode_hashes
from fanout.core.group_hashes import group_hash as hash_of
from fanout.policy.group_plans import GroupPlan, PartitionPlan, due_partitions, planned


def group_hash(name):
    return hash_of(name, run_id="r1")


def plan_of(shards, **options):
    return planned(lambda: iter(shards), **options)


def by_hand(shards):
    """Return each group with its first and last shard and its count, in the order of first appearance."""
    found = {}
    for number, hashes in enumerate(shards):
        for one in hashes:
            first, _, count = found.get(one, (number, number, 0))
            found[one] = first, number, count + 1
    return [(one, *rest) for one, rest in found.items()]


def made(seed):
    chance = random.Random(seed)
    names = chance.choice([1, 3, 40, 2_000])
    return [
        [group_hash(str(chance.randrange(names))) for _ in range(chance.randrange(1, 60))]
        for _ in range(chance.randrange(1, 40))
    ]


@pytest.mark.parametrize("seed", range(40))
def test_the_partitions_have_each_group_once_in_the_order_of_first_appearance(seed):
    shards = made(seed)
    most = random.Random(seed).choice([1, 5, 50, 100_000])
    plan, parts = plan_of(shards, most_branches=most)
    rows = [row for part in parts for row in zip(*part, strict=True)]
    assert rows == by_hand(shards)
    for partition, part in zip(plan.partitions, parts, strict=True):
        assert partition.groups == len(part.hashes)
        assert partition.branches == sum(part.counts)
        assert (partition.first, partition.last) == (min(part.firsts), max(part.lasts))
        assert partition.branches <= most or partition.groups == 1
        assert partition.is_alone == (partition.groups == 1 and partition.branches > most // 2)
        assert list(partition.due) == sorted({*partition.due})
        assert partition.due[-1] == partition.last, "it is due when all of it is there"


@pytest.mark.parametrize("at_once", [1, 7, 100, 1_000_000])
def test_the_plan_does_not_depend_on_how_much_of_it_is_in_memory(at_once):
    shards = made(3)
    assert plan_of(shards, at_once=at_once, most_branches=20) == plan_of(shards, most_branches=20)


def test_there_is_no_partition_without_branches():
    assert plan_of([]) == (GroupPlan(), [])
    assert plan_of([[], []]) == (GroupPlan(), [])


def shards_of(groups, each, shard, *, order):
    names = [f"group {number // each}" for number in range(groups * each)]
    order(names)
    return [
        [group_hash(name) for name in names[at : at + shard]] for at in range(0, len(names), shard)
    ]


def test_with_sorted_input_a_partition_is_due_whenever_a_shard_completes_groups():
    shards = shards_of(1_000, 10, 100, order=list.sort)
    plan, _ = plan_of(shards, most_branches=2_000)
    assert len(plan.partitions) == 5
    assert sum(len(partition.due) for partition in plan.partitions) == 100
    assert all(partition.last - partition.first == 19 for partition in plan.partitions)


@pytest.mark.parametrize("most", [500, 2_000, 100_000])
def test_with_unsorted_input_a_partition_is_due_only_a_few_times(most):
    shards = shards_of(1_000, 10, 100, order=random.Random(1).shuffle)
    plan, _ = plan_of(shards, most_branches=most)
    for partition in plan.partitions:
        assert len(partition.due) <= (4 if most == 100_000 else 2)
        assert partition.due[0] > 80, "few groups are complete before"


def test_a_large_group_is_a_partition_that_is_due_while_it_grows():
    names = ["small 1", *["large", "other"] * 3_000, "small 2"]
    shards = [[group_hash(name) for name in names[at : at + 50]] for at in range(0, len(names), 50)]
    plan, parts = plan_of(shards, most_branches=4_000)
    assert [partition.is_alone for partition in plan.partitions] == [False, True, True, False]
    assert parts[1].hashes[0] == group_hash("large")
    assert 10 <= len(plan.partitions[1].due) <= 20
    assert len(plan_of([[1] * 50], most_branches=4)[0].partitions[0].due) == 1


@pytest.mark.parametrize(
    ("before", "front", "due"),
    [
        (0, 0, []),
        (0, 3, []),
        (3, 4, [0]),
        (0, 100, [0, 1, 2]),
        (4, 9, [1]),
        (9, 99, [2]),
        (8, 8, []),
    ],
)
def test_partitions_are_due_when_the_front_passes_their_shards(before, front, due):
    partitions = tuple(
        PartitionPlan(groups=1, branches=1, first=0, last=shards[-1], due=shards)
        for shards in [(3,), (3, 8), (12,)]
    )
    found = due_partitions(GroupPlan(partitions=partitions), before=before, front=front)
    assert found == (due if before != 3 else [0, 1])


def test_hashes_of_hostile_names_are_64_bits_and_found_again():
    names = ["", "a", "a\0", "\ud800", "x" * 1_000_000, "null", "a", "\u202e"]
    hashes = [group_hash(name) for name in names]
    assert Counter(hashes)[group_hash("a")] == 2
    assert len({*hashes}) == len({*names})
    assert all(0 <= one < 2**64 for one in hashes)
    assert list(decode_hashes(encode_hashes(hashes))) == hashes
    assert list(decode_hashes(encode_hashes([]))) == []
    assert hash_of("a", run_id="r2") != group_hash("a"), (
        "no document knows the run that it will be in"
    )


@pytest.mark.parametrize("data", [b"", b"x", encode_hashes([1])[:-1], encode_hashes([0] * 200_000)])
def test_damaged_hashes_are_an_error(data):
    with pytest.raises(StoredDataError):
        decode_hashes(data)
