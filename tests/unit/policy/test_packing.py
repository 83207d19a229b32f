from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from fanout.core.neighbours import around_in, with_around
from fanout.core.records import Chunk
from fanout.policy.packing import pack, shard_chunk


def chunk(i, size=1):
    return Chunk(text="x" * size, document=f"d{i}", document_index=i)


@given(
    chunks=st.integers(0, 60),
    per_chunk=st.integers(1, 25),
    max_branches=st.integers(1, 20),
    max_bytes=st.integers(1, 500),
    first_branches=st.none() | st.integers(1, 30),
)
def test_every_branch_is_in_one_shard_with_its_chunk(
    chunks, per_chunk, max_branches, max_bytes, first_branches
):
    shards = list(
        pack(
            (chunk(i, size=10) for i in range(chunks)),
            branches_per_chunk=per_chunk,
            max_branches=max_branches,
            max_bytes=max_bytes,
            first_branches=first_branches,
        )
    )
    seen = []
    for shard in shards:
        assert shard.first == len(seen)
        assert 1 <= shard.count <= max_branches
        for index in range(shard.first, shard.first + shard.count):
            assert shard_chunk(shard, index, per_chunk).document_index == index // per_chunk
            seen.append(index)
    assert len(seen) == chunks * per_chunk


def test_the_first_shards_may_be_small_and_others_may_precede_them():
    few = pack(map(chunk, range(40)), branches_per_chunk=1, max_branches=16, first_branches=4)
    assert [shard.count for shard in few] == [4, 8, 16, 12]
    [later] = pack(map(chunk, range(3)), branches_per_chunk=1, first=70)
    assert (later.first, later.first_chunk) == (70, 70)
    assert shard_chunk(later, 72, 1).document == "d2"


def test_a_shard_is_closed_when_its_text_is_large():
    shards = list(pack((chunk(i, size=60) for i in range(4)), branches_per_chunk=1, max_bytes=100))
    assert [shard.count for shard in shards] == [2, 2]


@pytest.mark.parametrize(
    "cell", ["x" * 60, ["x" * 60], [1.5] * 7, {"k" * 60: 1}, {"a": [{"b": "x" * 60}]}]
)
def test_the_columns_of_a_chunk_count_too(cell):
    wide = [replace(chunk(i), columns={"c": cell}) for i in range(4)]
    shards = list(pack(wide, branches_per_chunk=1, max_bytes=100))
    assert [shard.count for shard in shards] == [2, 2]


def test_packing_is_lazy():
    taken = []

    def source():
        for i in range(10_000):
            taken.append(i)
            yield chunk(i)

    next(pack(source(), branches_per_chunk=1, max_branches=10))
    assert len(taken) == 10


@given(
    sizes=st.lists(st.integers(1, 9), max_size=9),
    neighbours=st.integers(0, 4),
    per_chunk=st.integers(1, 5),
    max_branches=st.integers(1, 12),
    max_bytes=st.integers(1, 60),
)
def test_a_chunk_knows_what_is_beside_it_wherever_shards_end(
    sizes, neighbours, per_chunk, max_branches, max_bytes
):
    chunks = [
        Chunk(text=f"{i}.{at}", document=f"d{i}", document_index=i, start=9 * at, end=9 * at + 3)
        for i, size in enumerate(sizes)
        for at in range(size)
    ]
    wanted = []
    for i, size in enumerate(sizes):
        for at in range(size):
            before = range(max(0, at - neighbours), at)
            after = range(at + 1, min(size, at + 1 + neighbours))
            wanted.append(
                tuple("\n".join(f"{i}.{one}" for one in some) for some in (before, after))
            )
    shards = list(
        pack(
            iter(chunks),
            branches_per_chunk=per_chunk,
            max_branches=max_branches,
            max_bytes=max_bytes,
            neighbours=neighbours,
        )
    )
    found = [
        around_in(shard, index // per_chunk, neighbours)
        for shard in shards
        for index in range(shard.first, shard.first + shard.count)
    ]
    assert found == [one for one in wanted for _ in range(per_chunk)]
    for shard in shards:
        assert max(len(shard.before), len(shard.after)) <= neighbours
    if neighbours:
        assert [one.around for one in with_around(iter(chunks), neighbours)] == wanted


def test_neighbours_count_for_the_size_of_a_shard_and_are_looked_at_lazily():
    taken = []

    def source():
        for i in range(1_000):
            taken.append(i)
            yield replace(chunk(0, size=10), position=i, columns={"c": "y"})

    shards = pack(source(), branches_per_chunk=1, max_bytes=100, neighbours=3)
    first, second = next(shards), next(shards)
    # 30 after the first shard, 60 around the second.
    assert (first.count, second.count) == (6, 4)
    assert [one.position for one in second.before] == [3, 4, 5]
    assert [one.columns for one in second.before] == [{}] * 3
    assert len(taken) == 6 + 4 + 3


def test_neighbours_that_overlap_are_joined_without_what_they_share():
    text = "one two three four five"
    spans = [(0, 7), (4, 13), (8, 18), (19, 23)]
    chunks = [
        Chunk(text=text[a:b], document="d", document_index=0, start=a, end=b) for a, b in spans
    ]
    around = [one.around for one in with_around(chunks, 3)]
    assert around[0] == ("", "two three four\nfive")
    assert around[3] == ("one two three four", "")
