from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from fanout.core.records import Chunk
from fanout.policy.packing import pack, shard_chunk


def chunk(i, size=1):
    return Chunk(text="x" * size, document=f"d{i}", document_index=i)


@given(
    chunks=st.integers(0, 60),
    per_chunk=st.integers(1, 25),
    max_branches=st.integers(1, 20),
    max_bytes=st.integers(1, 500),
)
def test_every_branch_is_in_one_shard_with_its_chunk(chunks, per_chunk, max_branches, max_bytes):
    shards = list(
        pack(
            (chunk(i, size=10) for i in range(chunks)),
            branches_per_chunk=per_chunk,
            max_branches=max_branches,
            max_bytes=max_bytes,
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
