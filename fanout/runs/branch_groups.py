"""The groups of the branches of a shard, where they are known before the branches have ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.aggregators import group_key
from fanout.core.group_hashes import encode_hashes, group_hash
from fanout.core.step_answers import STEPS
from fanout.policy.packing import shard_chunk

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from fanout.core.records import Chunk, Shard
    from fanout.core.reduces import Reduce
    from fanout.core.spec import RunSpec

__all__ = ["branch_group", "follows_chunks", "known_groups", "shard_groups"]


def follows_chunks(spec: RunSpec, reduce: Reduce) -> bool:
    """Return whether the group of a branch is known without its answer."""
    return not (spec.steps and reduce.group_by and reduce.group_by.startswith(STEPS))


def branch_group(
    spec: RunSpec,
    reduce: Reduce,
    chunk: Chunk,
    index: int,
    steps: Mapping[str, Any] | None = None,
) -> str:
    """Return the group of a branch of the map.

    Args:
        spec: The job.
        reduce: The reduce that has the groups.
        chunk: The chunk of the branch.
        index: The stage-wide index of the branch.
        steps: The answers of its steps, where the aggregate goes by one.
    """
    ref = spec.variants.ref(index)
    return group_key(
        reduce.group_by,
        document=chunk.document,
        aspect=ref.aspect,
        model=ref.model,
        columns=chunk.columns,
        steps=steps,
        part=None if chunk.title is None else {"title": chunk.title, "subtask": chunk.subtask},
    )


def shard_groups(spec: RunSpec, reduce: Reduce, shard: Shard) -> Iterator[str]:
    """Yield the groups of the branches of a shard, in order."""
    per_chunk = spec.branches_per_chunk
    for index in range(shard.first, shard.first + shard.count):
        yield branch_group(spec, reduce, shard_chunk(shard, index, per_chunk), index)


def known_groups(run_id: str, spec: RunSpec, content: Shard) -> dict[int, bytes]:
    """Return the groups of the branches of a shard, by the numbers of the reduces that need them."""
    return {
        number: encode_hashes(
            group_hash(name, run_id=run_id) for name in shard_groups(spec, reduce, content)
        )
        for number, reduce in enumerate(spec.reductions)
        if reduce.has_partitions and follows_chunks(spec, reduce)
    }
