"""The run store in memory: for tests, and to see what the store does without a server."""

from __future__ import annotations

from fanout.stores.memory.branches import MemoryBranches
from fanout.stores.memory.fleet import MemoryFleet
from fanout.stores.memory.limits import MemoryLimits
from fanout.stores.memory.runs import MemoryRuns
from fanout.stores.memory.stages import MemoryStages

__all__ = ["MemoryStore"]


class MemoryStore(MemoryRuns, MemoryStages, MemoryBranches, MemoryFleet, MemoryLimits):
    """The run store in the memory of one process. Nothing expires but notes and workers."""
