"""The records of the permits of runs with a limit of branches in flight."""

from __future__ import annotations

import msgspec

__all__ = ["PermitRequest", "PermitShare"]


class PermitRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a process reports of its permits for a run with ``max_workers``.

    Attributes:
        run_id: The run.
        max_workers: The run's cap.
        has: The permits that the process keeps.
        wanted: How many it could use at once.
    """

    run_id: str
    max_workers: int
    has: int
    wanted: int


class PermitShare(msgspec.Struct, frozen=True, kw_only=True):
    """The permits of one process for a run with ``max_workers``.

    Attributes:
        granted: The most branches of the run that the process may have in flight.
        level: How many it should have while other processes wait for some; ``max_workers`` if none
            waits.
    """

    granted: int
    level: int
