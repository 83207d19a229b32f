"""Failures that identical branches share: the same calls would fail in the same way again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.core.kept_answers import SharedFailure
from fanout.core.records import NO_CALL, ErrorKind
from fanout.llm.calls import CallResult
from fanout.policy.progress import Lesson

if TYPE_CHECKING:
    from fanout.core.spec import RunSpec
    from fanout.llm.base import LLMRequest
    from fanout.policy.progress import CallsSoFar

__all__ = ["SHARED", "failed_as", "shared_failure", "terms_of"]

# What the request itself brings about. An outage or a wrong key does not concern one request.
SHARED = frozenset(
    {
        ErrorKind.TRUNCATED,
        ErrorKind.CONTEXT_LENGTH,
        ErrorKind.BAD_REQUEST,
        ErrorKind.CONTENT_FILTER,
        ErrorKind.INVALID_OUTPUT,
    }
)


def terms_of(spec: RunSpec, request: LLMRequest) -> str:
    """Return what the end of calls depends on beside the request: how often and in which lane it is asked."""
    asks = (spec.max_reasks, spec.retries.max_attempts, spec.context_tokens or 0)
    return " ".join([request.lane, *map(str, asks)])


def shared_failure(result: CallResult, *, terms: str, attempt: str) -> SharedFailure | None:
    """Return how calls failed, for identical branches; None if theirs may end otherwise.

    One that strikes all branches of a run is left to each of them: together they stop it.
    """
    if result.kind not in SHARED or result.stop_after or result.is_out_of_time:
        return None
    return SharedFailure(
        kind=result.kind,
        message=result.message,
        finish_reason=result.finish_reason,
        ends_alike=result.lesson is not None and result.lesson.kind is not None,
        terms=terms,
        attempt=attempt,
    )


def failed_as(failure: SharedFailure, before: CallsSoFar | None) -> CallResult:
    """Return the result of a branch that takes a failure, after calls of earlier deliveries."""
    has_called = before is not None and before.attempts > 0
    lesson = Lesson(kind=failure.kind, message=failure.message) if failure.ends_alike else None
    return CallResult(
        output=None,
        kind=failure.kind,
        message=failure.message,
        attempts=before.attempts if before and has_called else 0,
        usage=before.usage if before and has_called else NO_CALL,
        elapsed_s=before.elapsed_s if before and has_called else 0.0,
        finish_reason=failure.finish_reason,
        lesson=lesson,
    )
