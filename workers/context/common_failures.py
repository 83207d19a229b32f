"""Finds runs whose branches all fail in the same way: by a wrong key or model, not by a document.

It costs only branches that fail; a branch that succeeds pays nothing.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING

from fanout.core.ids import StageId
from fanout.llm.error_kinds import FEW
from fanout.policy.retries import is_common
from fanout.runs.results import error_sort

if TYPE_CHECKING:
    from fanout.core.records import Outcome
    from fanout.stores import RedisStore, StageRecord

__all__ = ["CommonFailures"]

_REMEMBERED_RUNS = 64


class CommonFailures:
    """Counts the failures of each run in this process. Safe to share between threads.

    Args:
        store: The store that counts the fleet's successes.
    """

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._runs: OrderedDict[str, Counter[tuple[str, str]]] = OrderedDict()

    def reason(self, stage_id: StageId, outcome: Outcome, stop_after: int) -> str | None:
        """Return why the failure of a branch should stop its run, or None."""
        if stop_after == 1:
            return f"{outcome.kind}: {outcome.message}"
        seen = self._count(stage_id.run_id, outcome)
        records = [
            self._store.stage(StageId(stage_id.run_id, stage))
            for stage in range(stage_id.stage + 1)
        ]
        succeeded = sum(record.succeeded for record in records)
        alike = max(seen, _failed_so(records[-1], outcome) if stop_after <= FEW else 0)
        if not is_common(alike=alike, stop_after=stop_after, succeeded=succeeded):
            return None
        return (
            f"{outcome.kind}: {outcome.message}; stopped, as the first {alike} branches failed of "
            "the same"
        )

    def _count(self, run_id: str, outcome: Outcome) -> int:
        with self._lock:
            return self._counted(run_id, outcome)

    def _counted(self, run_id: str, outcome: Outcome) -> int:
        counts = self._runs.setdefault(run_id, Counter())
        self._runs.move_to_end(run_id)
        if len(self._runs) > _REMEMBERED_RUNS:
            self._runs.popitem(last=False)
        sort = error_sort(outcome.kind, outcome.message)
        counts[sort] += 1
        return counts[sort]


def _failed_so(record: StageRecord, outcome: Outcome) -> int:
    """Return how many branches of the fleet failed with this kind, or 0 if others failed otherwise.

    So a fleet of many processes stops a run after as few failures as one process.
    """
    failed = record.errors.get(outcome.kind, 0) if outcome.kind else 0
    return failed + 1 if failed == record.failed else 0
