"""Finds the models of a run that fail for each of its branches, while others of it answer."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, TypeAlias

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

__all__ = ["BrokenModels", "Opening", "unusable"]

# The id of a run, and when the retry began in which a branch is processed: see RunRecord.opening.
Opening: TypeAlias = tuple[str, float | None]

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
        # By run and its opening, as who retries a run has put right what was wrong, and model.
        self._seen: OrderedDict[tuple[Opening, str], _Seen] = OrderedDict()

    def problem(self, opening: Opening, model: str) -> CallResult | None:
        """Return how a branch ends that would ask a model which cannot be called; None if it can."""
        seen = self._seen.get((opening, model))
        if seen is None or seen.problem is None:
            return None
        if self._clock() >= seen.until:
            del self._seen[opening, model]
            return None
        return seen.problem

    def succeeded(self, opening: Opening, model: str) -> None:
        """Count an answer."""
        self._of(opening, model).succeeded += 1

    def failed(self, opening: Opening, model: str, result: CallResult) -> None:
        """Count a failure that may strike all branches of a model: see ``LLMError.stop_after``."""
        seen, sort = self._of(opening, model), error_sort(result.kind, result.message)
        seen.failures[sort] += 1
        if is_common(
            alike=seen.failures[sort], stop_after=result.stop_after, succeeded=seen.succeeded
        ):
            seen.problem = msgspec.structs.replace(result, attempts=0, usage=NO_CALL, elapsed_s=0.0)
            seen.until = self._clock() + _LASTS_S

    def are_all(self, opening: Opening, models: Iterable[str]) -> bool:
        """Return whether no model of a run with several can be called."""
        problems = [
            seen and seen.problem for seen in (self._seen.get((opening, m)) for m in models)
        ]
        return bool(problems) and all(problem is not None for problem in problems)

    def _of(self, opening: Opening, model: str) -> _Seen:
        seen = self._seen.get((opening, model))
        if seen is None:
            seen = self._seen[opening, model] = _Seen()
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
