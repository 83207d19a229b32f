"""Finds the models of a run that fail for each of its branches, while others of it answer."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING

import msgspec

from fanout.core.errors import BrokerError, UnknownRunError
from fanout.core.records import NO_CALL, ErrorKind
from fanout.llm.calls import CallResult
from fanout.llm.error_kinds import FEW, MANY
from fanout.policy.retries import STOPS_RUN, is_common
from fanout.runs.common_errors import error_sort

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fanout.core.errors import ModelError
    from fanout.stores import RedisStore

__all__ = ["BrokenModels", "unusable"]

_REMEMBERED = 256
# After so many seconds a branch tries again: an account may have got money meanwhile.
_LASTS_S = 30.0


class _Seen:
    """What this process has seen of a model in a run."""

    def __init__(self) -> None:
        self.succeeded = 0
        self.failures: Counter[tuple[str, str]] = Counter()
        self.problem: CallResult | None = None
        self.until = 0.0
        # When the latest retry of the run began, when the problem was found.
        self.reopened_at: float | None = None


class BrokenModels:
    """Remembers which models of a run cannot be called: by a wrong key, name or account.

    In a run of one model such a failure stops the run. Where there are others, only the branches of
    that model end, each without a call, and the run goes on. It is used on one loop.

    Args:
        store: The runs.
        clock: Monotonic seconds.
    """

    def __init__(self, store: RedisStore, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._seen: OrderedDict[tuple[str, str], _Seen] = OrderedDict()

    async def problem(self, run_id: str, model: str) -> CallResult | None:
        """Return how a branch ends that would ask a model which cannot be called; None if it can."""
        seen = self._seen.get((run_id, model))
        if seen is None or seen.problem is None:
            return None
        # Who retries a run has put right what was wrong.
        if self._clock() >= seen.until or await self._reopened_at(run_id) != seen.reopened_at:
            # Another branch may have found that meanwhile.
            if self._seen.get((run_id, model)) is seen:
                del self._seen[run_id, model]
            return None
        return seen.problem

    def succeeded(self, run_id: str, model: str) -> None:
        """Count an answer."""
        self._of(run_id, model).succeeded += 1

    async def failed(self, run_id: str, model: str, result: CallResult) -> None:
        """Count a failure that may strike all branches of a model: see ``LLMError.stop_after``."""
        seen, sort = self._of(run_id, model), error_sort(result.kind, result.message)
        seen.failures[sort] += 1
        if is_common(
            alike=seen.failures[sort], stop_after=result.stop_after, succeeded=seen.succeeded
        ):
            seen.reopened_at = await self._reopened_at(run_id)
            seen.problem = msgspec.structs.replace(result, attempts=0, usage=NO_CALL, elapsed_s=0.0)
            seen.until = self._clock() + _LASTS_S

    def are_all(self, run_id: str, models: Iterable[str]) -> bool:
        """Return whether no model of a run with several can be called."""
        problems = [seen and seen.problem for seen in (self._seen.get((run_id, m)) for m in models)]
        return bool(problems) and all(problem is not None for problem in problems)

    def _of(self, run_id: str, model: str) -> _Seen:
        seen = self._seen.get((run_id, model))
        if seen is None:
            seen = self._seen[run_id, model] = _Seen()
            if len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
        return seen

    async def attempt(self, run_id: str) -> str:
        """Return what names a run until its next retry."""
        try:
            run = await asyncio.to_thread(self._store.run, run_id)
        except (BrokerError, UnknownRunError):
            return run_id
        # An id may be that of an earlier run that was deleted.
        return f"{run_id} {run.created_at} {run.reopened_at}"

    async def _reopened_at(self, run_id: str) -> float | None:
        try:
            run = await asyncio.to_thread(self._store.run, run_id)
        except (BrokerError, UnknownRunError):
            return None
        return run.reopened_at


def unusable(error: ModelError) -> CallResult:
    """Return how a branch ends whose model this worker cannot use."""
    kind = error.kind or ErrorKind.BAD_REQUEST
    return CallResult(
        output=None,
        kind=kind,
        message=str(error),
        attempts=0,
        usage=NO_CALL,
        elapsed_s=0.0,
        # Another worker may have the model that this one lacks.
        stop_after=FEW if kind in STOPS_RUN else MANY,
    )
