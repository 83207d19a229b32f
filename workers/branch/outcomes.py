"""The outcomes of branches: what came of their calls, and what is left of those that were given up."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from msgspec import structs

from fanout.core.records import ErrorKind, Outcome, total_usage
from fanout.core.redaction import redacted
from fanout.llm.usage import billed

if TYPE_CHECKING:
    from fanout.llm.calls import CallResult
    from workers.telemetry.reports import Calls

__all__ = ["outcome_of", "presentable", "unanswered"]

# The longest message that is stored: a provider may return a page, or the whole prompt.
_MAX_MESSAGE = 1_000


def outcome_of(index: int, result: CallResult) -> Outcome:
    """Return the outcome of a branch from the result of its calls."""
    return Outcome(
        index=index,
        output=result.output,
        kind=result.kind,
        message=result.message,
        attempts=result.attempts,
        usage=result.usage,
        elapsed_s=result.elapsed_s,
        model=result.model,
        finish_reason=result.finish_reason,
        lane=result.lane,
        is_cut=result.is_cut,
        confidence=result.confidence,
        usage_of=result.usage_of,
        saved=result.saved,
        refused=result.refused,
    )


def unanswered(index: int, kind: ErrorKind, message: str, calls: Calls) -> Outcome:
    """Return the outcome of a branch that is given up; its usage and its votes so far count."""
    earlier = calls.earlier
    used = [*earlier.usages, *(billed(call.kind, call.usage) for call in calls.attempts)]
    elapsed_s = _since(calls.attempts[0].started_at) if calls.attempts else 0.0
    outcome = Outcome(
        index=index,
        kind=kind,
        message=message,
        attempts=len(calls.attempts) + earlier.attempts,
        usage=total_usage(used),
        usage_of=calls.usage_of,
        elapsed_s=elapsed_s + earlier.elapsed_s,
    )
    return calls.so_far.given_up(outcome)


def _since(moment: float) -> float:
    # The clock may have been set back.
    return max(0.0, time.time() - moment)


def presentable(outcome: Outcome) -> Outcome:
    """Return the outcome with its message as it is stored: without keys, and not too long."""
    if outcome.message is None:
        return outcome
    return structs.replace(outcome, message=redacted(outcome.message)[:_MAX_MESSAGE])
