"""The seam to traces: what a worker tells of branches, shards and runs that have ended.

Off unless FANOUT_TRACES says so: then nothing is told, and nothing of OpenTelemetry is imported.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from fanout.core.ids import BranchId, ShardId
    from fanout.core.records import Outcome
    from fanout.core.settings import Settings
    from fanout.llm.base import LLMRequest
    from fanout.llm.calls import CallAttempt
    from fanout.stores import RunRecord, StageRecord

__all__ = ["Calls", "NoTelemetry", "Telemetry", "make_telemetry"]


class Calls:
    """The calls of one delivery of a branch: their requests and results, without any text.

    Attributes:
        started_at: When the delivery was begun: seconds since the epoch.
        model: The model string; empty where there was no call.
        temperature: As it was asked for, or None.
        max_tokens: As it was asked for, or None.
        seed: As it was asked for, or None.
        attempts: The calls that have ended.
        stop_after: How many branches must fail as this one did until the run is stopped; 0: none.
    """

    def __init__(self, started_at: float) -> None:
        self.started_at = started_at
        self.model = ""
        self.temperature: float | None = None
        self.max_tokens: int | None = None
        self.seed: int | None = None
        self.attempts: list[CallAttempt] = []
        self.stop_after = 0

    def asks(self, model: str, request: LLMRequest) -> None:
        """Remember what is asked for, apart from the prompt."""
        self.model = model
        self.temperature = request.temperature
        self.max_tokens = request.max_tokens
        self.seed = request.seed


class Telemetry(Protocol):
    """A receiver of reports. It may raise any error: the caller logs it and goes on."""

    def branch(self, branch_id: BranchId, outcome: Outcome, calls: Calls) -> None:
        """Tell of a branch whose outcome was the first."""

    def shard(self, shard_id: ShardId, outcomes: Collection[Outcome]) -> None:
        """Tell of a shard that was collected just now."""

    def run(self, run: RunRecord, stages: list[StageRecord]) -> None:
        """Tell of a run that has ended."""

    def close(self) -> None:
        """Send what was told and not sent yet; for a few seconds at most."""


class NoTelemetry:
    """Nobody."""

    def branch(self, branch_id: BranchId, outcome: Outcome, calls: Calls) -> None:
        """Do nothing."""

    def shard(self, shard_id: ShardId, outcomes: Collection[Outcome]) -> None:
        """Do nothing."""

    def run(self, run: RunRecord, stages: list[StageRecord]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def make_telemetry(settings: Settings, find_run: Callable[[str], RunRecord]) -> Telemetry:
    """Return what the settings, and OpenTelemetry's own OTEL_SDK_DISABLED, ask for.

    Args:
        settings: Says whether there are traces, and of how many branches.
        find_run: Returns the state of a run.
    """
    is_disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if settings.traces == "off" or is_disabled:
        return NoTelemetry()
    from workers.telemetry.spans import Tracing

    return Tracing(find_run, branch_ratio=settings.traces_branch_ratio)
