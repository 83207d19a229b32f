"""What came of the models that a branch has asked in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from fanout.core.records import NO_CALL, ErrorKind, total_usage
from fanout.llm.calls import CallResult
from fanout.policy.fallback import without_answer
from fanout.policy.progress import EndedModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fanout.core.spec import RetrySpec

__all__ = ["ended_model", "joined", "result_of", "within", "without_call"]


def within(retries: RetrySpec, left_s: float) -> RetrySpec:
    """Return the policy of retries for the time that is left."""
    return retries.model_copy(update={"max_elapsed_s": max(0.0, left_s)})


def ended_model(model: str, result: CallResult) -> EndedModel:
    """Return what a checkpoint keeps of a model that has no answer."""
    return EndedModel(
        model=model,
        kind=result.kind or ErrorKind.INTERNAL,
        attempts=result.attempts,
        usage=result.usage,
        elapsed_s=result.elapsed_s,
    )


def result_of(ended: EndedModel) -> CallResult:
    """Return the result of a model that an earlier delivery has asked."""
    return CallResult(
        output=None,
        kind=ended.kind,
        message=None,
        attempts=ended.attempts,
        usage=ended.usage,
        elapsed_s=ended.elapsed_s,
    )


def without_call(kind: ErrorKind, message: str | None) -> CallResult:
    """Return the result of a model that was not asked."""
    return CallResult(
        output=None, kind=kind, message=message, attempts=0, usage=NO_CALL, elapsed_s=0.0
    )


def joined(ended: Sequence[tuple[str, CallResult]]) -> CallResult:
    """Return what came of models that were asked in turn, with what all of them consumed."""
    (first, result), (last, final) = ended[0], ended[-1]
    if len(ended) == 1:
        return result
    # A model whose answer was kept, or that was not asked, has consumed nothing.
    called = {model: one.usage for model, one in ended if one.attempts}
    before = [(model, one.kind) for model, one in ended[:-1] if one.kind is not None]
    message = final.message and without_answer(final.message, before, last)
    return structs.replace(
        final,
        message=message,
        attempts=sum(one.attempts for _, one in ended),
        usage=total_usage(list(called.values())) if called else NO_CALL,
        elapsed_s=sum(one.elapsed_s for _, one in ended),
        model=last if final.kind is None and last != first else None,
        usage_of=called if set(called) != {first} else {},
    )
