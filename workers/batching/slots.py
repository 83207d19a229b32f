"""How many steps of batches are under way at a time."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fanout.core.gathered import BatchStage

__all__ = ["Slots"]

# Of a lane at a time: submissions, questions and cancellations; results that are read; and such whose
# branches have messages enough, so that they are read slowly.
_SHORT = 8
_LANDINGS = 4
_MOST_LANDINGS = 16


class Slots:
    """Counts the steps under way, for each lane apart: no lane holds up another.

    Results that are read hold up no submissions and questions, and those of a run whose branches are far
    behind hold up no other results.
    """

    def __init__(self) -> None:
        self._short: Counter[str] = Counter()
        self._landings: Counter[str] = Counter()
        self._behind: Counter[str] = Counter()

    def take(self, lane_id: str, stage: BatchStage, *, is_behind: bool = False) -> None:
        """Count a step of a batch of a lane."""
        if stage != "landing":
            self._short[lane_id] += 1
        elif is_behind:
            self._behind[lane_id] += 1
        else:
            self._landings[lane_id] += 1

    def are_free(self, lane_id: str, stage: BatchStage) -> bool:
        """Return whether a batch of a lane may take a step."""
        if stage != "landing":
            return self._short[lane_id] < _SHORT
        landings = self._landings[lane_id]
        return landings < _LANDINGS and landings + self._behind[lane_id] < _MOST_LANDINGS
