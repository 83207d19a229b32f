"""The ids of stages, shards and branches, and of their tasks and chords, with their parsing and format.

The id of a run is a text without a slash. All other ids begin with it:

* ``run/stage`` is the root chord of a stage; ``run/stage/seal`` and ``run/stage/aggregate`` are tasks;
* ``run/stage/shard`` is the chord of a shard; ``.../expand`` and ``.../collect`` are its tasks;
* ``run/stage/shard/position`` is the task of a branch;
* ``run/stage/reduce/partition/pack`` is the task that packs a partition of the groups of a reduce.

These are structs that the garbage collector does not track: they cost half of what named tuples do.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeAlias

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

__all__ = [
    "BranchId",
    "Id",
    "PartitionId",
    "ShardId",
    "StageId",
    "joined",
    "parse_task_id",
    "run_of",
]

# Each number has one form only, so that parsing and formatting an id gives the same text.
_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}")


class _Id(msgspec.Struct, frozen=True, gc=False):
    run_id: str
    stage: int

    @property
    def stage_id(self) -> StageId:
        """The stage that it belongs to."""
        return StageId(self.run_id, self.stage)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse an id, without a task's word. Raises ValueError."""
        run_id, *numbers = text.split("/")
        names = cls.__struct_fields__
        is_sound = run_id and all(map(_NUMBER.fullmatch, numbers))
        if not is_sound or len(numbers) != len(names) - 1:
            raise ValueError(f"{text!r} is not of the form {'/'.join(names)}")
        return cls(run_id, *map(int, numbers))


class StageId(_Id, frozen=True, gc=False):
    """A stage of a run, numbered from 0."""

    @property
    def group_id(self) -> str:
        """The header of its root chord: ``collect`` tasks and the seal."""
        return f"{self.run_id}/{self.stage}"

    @property
    def seal_task_id(self) -> str:
        """The task that closes the header of its root chord."""
        return f"{self.group_id}/seal"

    @property
    def aggregate_task_id(self) -> str:
        """The callback of its root chord."""
        return f"{self.group_id}/aggregate"

    def shard(self, shard: int) -> ShardId:
        """Return one of its shards."""
        return ShardId(self.run_id, self.stage, shard)

    def partition(self, reduce: int, partition: int) -> PartitionId:
        """Return a partition of the groups of one of the job's reduces, as this stage has its parts."""
        return PartitionId(self.run_id, self.stage, reduce, partition)

    def is_ended_by(self, task_id: str) -> bool:
        """Say whether a task brings the stage to its end: ``collect``, ``seal``, ``aggregate``, ``pack``."""
        ends = ("/collect", "/seal", "/aggregate", "/pack")
        return task_id.startswith(f"{self.group_id}/") and task_id.endswith(ends)


class ShardId(_Id, frozen=True, gc=False):
    """A shard of a stage, numbered from 0."""

    shard: int

    @property
    def group_id(self) -> str:
        """The header of its chord: its branches."""
        return f"{self.run_id}/{self.stage}/{self.shard}"

    @property
    def expand_task_id(self) -> str:
        """The task that publishes its chord."""
        return f"{self.group_id}/expand"

    @property
    def collect_task_id(self) -> str:
        """The callback of its chord."""
        return f"{self.group_id}/collect"

    def branch(self, position: int) -> BranchId:
        """Return the branch at a position."""
        return BranchId(self.run_id, self.stage, self.shard, position)

    def positions(self, task_ids: Iterable[str]) -> frozenset[int]:
        """Return the positions of its branches whose tasks are among ``task_ids``."""
        prefix = f"{self.group_id}/"
        tails = (task_id[len(prefix) :] for task_id in task_ids if task_id.startswith(prefix))
        return frozenset(int(tail) for tail in tails if _NUMBER.fullmatch(tail))


class BranchId(_Id, frozen=True, gc=False):
    """A branch, at a position from 0 in its shard."""

    shard: int
    position: int

    @property
    def task_id(self) -> str:
        """Its task: the same each time that it is published."""
        return f"{self.run_id}/{self.stage}/{self.shard}/{self.position}"

    @property
    def shard_id(self) -> ShardId:
        """The shard that it belongs to."""
        return ShardId(self.run_id, self.stage, self.shard)


class PartitionId(_Id, frozen=True, gc=False):
    """A partition of groups at a stage whose outcomes are packed for the next one.

    Attributes:
        reduce: The number of the reduce among those of the job, from 0.
        partition: Its number, from 0.
    """

    reduce: int
    partition: int

    @property
    def pack_task_id(self) -> str:
        """The task that packs what has ended of it."""
        return f"{self.run_id}/{self.stage}/{self.reduce}/{self.partition}/pack"

    def at(self, stage: int) -> PartitionId:
        """Return the same partition at another stage."""
        return PartitionId(self.run_id, stage, self.reduce, self.partition)


Id: TypeAlias = StageId | ShardId | BranchId | PartitionId
_OF_WORD: dict[str, type[StageId | ShardId | PartitionId]]
_OF_WORD = {
    "seal": StageId,
    "aggregate": StageId,
    "expand": ShardId,
    "collect": ShardId,
    "pack": PartitionId,
}


def parse_task_id(task_id: str) -> tuple[Id, str]:
    """Return the id of a task's stage, shard, branch or partition, and its word; a branch has ``branch``.

    Raises:
        ValueError: No task of a run has such an id.
    """
    head, _, word = task_id.rpartition("/")
    if word in _OF_WORD:
        return _OF_WORD[word].parse(head), word
    return BranchId.parse(task_id), "branch"


def run_of(task_id: str) -> str:
    """Return the run of any task id, group id or folder of blobs."""
    return task_id.partition("/")[0]


def joined(*parts: object) -> str:
    """Return the parts of an id as one text."""
    return "/".join(map(str, parts))
