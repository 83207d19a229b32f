"""The calls of one branch: a deadline for each call, and retries that wait on the loop."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from fanout.core.errors import LLMError
from fanout.core.lanes import Lane  # noqa: TC001 - msgspec reads the annotation
from fanout.core.records import NO_CALL, ErrorKind, Usage, total_usage
from fanout.core.redaction import redacted
from fanout.llm.answers import WrongAnswerError, checked_answer, storable
from fanout.llm.base import LLMReply, ends_by_chance, unexpected
from fanout.llm.confidence import label_confidence
from fanout.llm.deadline import Deadline
from fanout.llm.finish_reasons import ending
from fanout.llm.reviews import marked_answer, reviewed
from fanout.llm.sound_replies import sound_error, sound_reply
from fanout.llm.tries import Tries, message_of
from fanout.llm.usage import billed, billed_at
from fanout.llm.user_code import contained, is_of_user, require_room
from fanout.policy.outages import judge_alone
from fanout.policy.pricing import priced
from fanout.policy.progress import Lesson  # noqa: TC001 - msgspec reads the annotation
from fanout.policy.retries import stop_after

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Self

    from fanout.core.answer_shape import AnswerShape
    from fanout.core.spec_fields import RetrySpec
    from fanout.llm.base import LLM, LLMRequest
    from fanout.policy.outages import FailureVerdict
    from fanout.policy.pricing import Price
    from fanout.policy.progress import CallsSoFar

__all__ = ["CallAttempt", "CallGate", "CallResult", "complete_with_retries"]

_MAX_REASON = 40


class CallResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of all calls of a branch; for the other fields see Outcome.

    Attributes:
        stop_after: Stop the run after this many branches with the same failure; 0 for never.
        is_out_of_time: Whether only ``max_elapsed_s`` forbids another call.
        lesson: What the result says about further samples of the prompt, if anything.
    """

    output: str | None
    kind: ErrorKind | None
    message: str | None
    attempts: int
    usage: Usage
    elapsed_s: float
    stop_after: int = 0
    is_out_of_time: bool = False
    finish_reason: str | None = None
    lane: Lane | None = None
    is_cut: bool = False
    confidence: float | None = None
    model: str | None = None
    usage_of: dict[str, Usage] = {}
    lesson: Lesson | None = None
    saved: Usage = NO_CALL
    refused: tuple[tuple[str, str], ...] = ()


class CallGate(Protocol):
    """Admits each call of a branch, perhaps after a wait, and learns the outcome of the call."""

    async def enter(self, request: LLMRequest, *, left_s: float) -> float:
        """Wait until the call may begin; return the seconds spent on a rate limit.

        Args:
            request: The call.
            left_s: Seconds after which to admit the call even if the model fails for all branches.

        Raises:
            LLMError: The branch is not to call the model any more.
        """

    async def leave(
        self, request: LLMRequest, reply: LLMReply | None, error: LLMError | None
    ) -> FailureVerdict | None:
        """Record the outcome of the call; return what its error means for the branch."""


class CallAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """One call as an observer sees it: the outcome, without prompt and answer.

    Attributes:
        number: 1 for the first call of a branch.
        started_at: Seconds since the epoch.
        elapsed_s: The duration of the call in seconds.
        kind: Why it failed, or None.
        usage: What it consumed, or None if unknown.

    The other fields are those of the LLMReply.
    """

    number: int
    started_at: float
    elapsed_s: float
    kind: ErrorKind | None = None
    usage: Usage | None = None
    model: str | None = None
    response_id: str | None = None
    finish_reason: str | None = None
    lane: Lane | None = None


async def _keep_nothing(_so_far: CallsSoFar) -> None:
    """Let the calls be lost with this process."""


async def complete_with_retries(
    llm: LLM,
    request: LLMRequest,
    *,
    policy: RetrySpec,
    timeout_s: float,
    max_reasks: int = 0,
    keeps_cut: bool = False,
    window_tokens: int | None = None,
    validate: Callable[[str], str] | None = None,
    gate: CallGate | None = None,
    max_output_kb: int | None = None,
    observe: Callable[[CallAttempt], None] | None = None,
    so_far: CallsSoFar | None = None,
    keep: Callable[[CallsSoFar], Awaitable[None]] = _keep_nothing,
    price: Price | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    rand: Callable[[], float] = random.random,
) -> CallResult:
    """Call until there is an answer or the policy gives up.

    A failed call raises nothing: see CallResult. What ``observe``, ``keep`` and ``sleep`` raise, what
    ``gate`` raises beside an LLMError, and a cancellation, end the calls.

    An answer that does not have the shape of the request is sent back with what is wrong, up to
    ``max_reasks`` times; one that its review finds something wrong with, once of these times, and then it
    is kept with marks. Without a shape, ``validate`` returns the answer to store, or raises LLMError
    if the answer is invalid. An answer that was cut off at its limit of tokens is accepted if
    ``keeps_cut``, else asked for once more with twice the limit, where one was set and
    ``window_tokens``, the model's context window, allows it, or as before where an answer
    ``ends_by_chance``. ``gate`` delays calls; waits for a rate
    limit do not count towards any time limit. ``timeout_s`` is the deadline of one call in seconds.
    ``keep`` gets the calls so far before each further one; the calls go on from ``so_far``. The usage
    of a call has its cost by ``price``; None is unknown. ``rand`` returns a number from 0 to 1.
    """
    tries = Tries(
        request,
        policy,
        clock(),
        reasks=max_reasks,
        window_tokens=window_tokens,
        is_chance=ends_by_chance(llm, request),
        so_far=so_far,
    )
    while True:
        arrived, for_rate_s = clock(), 0.0
        if gate is not None:
            try:
                for_rate_s = await gate.enter(tries.request, left_s=tries.left_s(arrived))
            except LLMError as error:
                failed = _failed(error, tries, clock() - tries.started)
                return await _reviewed_before(failed, request, tries)
        tries.entered(waited_s=clock() - arrived, for_rate_s=for_rate_s)
        observed = _Observed(tries.number, observe, clock)
        try:
            with observed:
                reply = observed.reply = await _call(llm, tries.request, timeout_s, price)
                text = await checked_answer(
                    reply,
                    shape=request.shape,
                    validate=validate,
                    max_output_kb=max_output_kb,
                    keeps_cut=keeps_cut,
                )
                if request.review is not None:
                    asks_again = tries.may_reask and tries.returned is None
                    text = await reviewed(request.review, text, asks_again=asks_again)
        except LLMError as error:
            result, wait_s = await _after_failure(error, observed, tries, gate, clock, rand)
            if result is not None:
                return await _reviewed_before(result, request, tries)
            await keep(tries.so_far(clock()))
            if wait_s is not None:
                await sleep(wait_s)
        else:
            if gate is not None:
                await gate.leave(tries.request, reply, None)
            tries.used.append(reply.usage)
            return _answered(text, reply, request.shape, tries, clock() - tries.started)


async def _reviewed_before(failed: CallResult, request: LLMRequest, tries: Tries) -> CallResult:
    """Return the answer that a review has sent back, with its marks, if no better one could be had."""
    answer = tries.returned if request.review is not None else None
    if answer is None or request.review is None:
        return failed
    try:
        text = await marked_answer(request.review, answer)
    except LLMError:
        return failed
    return msgspec.structs.replace(
        failed, output=text, kind=None, message=None, stop_after=0, is_out_of_time=False, refused=()
    )


async def _after_failure(
    error: LLMError,
    observed: _Observed,
    tries: Tries,
    gate: CallGate | None,
    clock: Callable[[], float],
    rand: Callable[[], float],
) -> tuple[CallResult | None, float | None]:
    """Return the result if there is no further call, and the seconds until it, None for at once."""
    reply = observed.reply
    if isinstance(error, WrongAnswerError) and reply is not None:
        # The model works; waiting does not help.
        await _left(gate, tries.request, reply, None)
        asks_again = tries.reasks(error, reply)
        return None if asks_again else _failed(error, tries, clock() - tries.started), None
    verdict = await _left(gate, tries.request, reply, error) or judge_alone(error)
    used = observed.usage(error)
    wait_s = tries.failed(error, used, verdict, now=clock(), jitter=rand())
    if wait_s is not None:
        return None, wait_s
    result = _failed(error, tries, clock() - tries.started)
    return msgspec.structs.replace(result, is_out_of_time=tries.may_retry(error.kind)), None


class _Observed:
    """Reports a call to an observer when the call ends, with or without an error."""

    def __init__(
        self, number: int, observe: Callable[[CallAttempt], None] | None, clock: Callable[[], float]
    ) -> None:
        self.reply: LLMReply | None = None
        self._number = number
        self._observe = observe
        self._clock = clock

    def __enter__(self) -> Self:
        self._started_at = time.time()
        self._started = self._clock()
        return self

    def usage(self, error: LLMError) -> Usage:
        """Return what a call consumed that failed, or whose answer cannot be used."""
        return self.reply.usage if self.reply else billed(error.kind, error.usage)

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if self._observe is None:
            return
        kind = None if error is None else getattr(error, "kind", ErrorKind.CANCELLED)
        reply = self.reply
        reason = reply.finish_reason if reply else getattr(error, "finish_reason", None)
        self._observe(
            CallAttempt(
                number=self._number,
                started_at=self._started_at,
                elapsed_s=self._clock() - self._started,
                kind=kind,
                usage=reply.usage if reply else getattr(error, "usage", None),
                model=reply.model if reply else None,
                response_id=reply.response_id if reply else None,
                finish_reason=reason,
                lane=reply.lane if reply else None,
            )
        )


async def _left(
    gate: CallGate | None, request: LLMRequest, reply: LLMReply | None, error: LLMError | None
) -> FailureVerdict | None:
    if gate is None:
        return None
    return await gate.leave(request, reply, error)


async def _call(
    llm: LLM, request: LLMRequest, timeout_s: float, price: Price | None = None
) -> LLMReply:
    """Return the answer to a call. Its usage, or that of its error, has its cost from here on."""
    try:
        reply = sound_reply(await _made(llm, request, timeout_s))
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        # Nobody cancelled this call, but something that it awaited was cancelled.
        raise _with_cost(unexpected(error), price, request) from error
    except LLMError as error:
        _with_cost(error, price, request)
        raise
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        # Also an exit must end its branch, not the worker.
        raise _with_cost(unexpected(error), price, request) from error
    usage = priced(reply.usage, price, reply.lane or request.lane)
    return reply if usage is reply.usage else msgspec.structs.replace(reply, usage=usage)


def _with_cost(error: LLMError, price: Price | None, request: LLMRequest) -> LLMError:
    error.usage = billed_at(price, error.kind, error.usage, request.lane)
    return error


async def _made(llm: LLM, request: LLMRequest, timeout_s: float) -> Any:
    deadline = Deadline(timeout_s)
    try:
        with deadline:
            if is_of_user(llm):
                require_room(llm)
                return await contained(llm.complete, request, of=llm)
            return await llm.complete(request)
    except TimeoutError as error:
        if deadline.has_passed:
            raise LLMError(ErrorKind.TIMEOUT, f"no answer within {timeout_s:g} s") from None
        # Of a connection, perhaps: like one of the deadline, but it did not take so long.
        fault = unexpected(error)
        fault.kind = ErrorKind.TIMEOUT
        raise fault from error
    except LLMError as error:
        # A user's function may raise it with any values.
        sound_error(error)
        raise


def _answered(
    text: str, reply: LLMReply, shape: AnswerShape | None, tries: Tries, elapsed_s: float
) -> CallResult:
    lane = reply.lane or tries.request.lane
    return CallResult(
        output=text,
        kind=None,
        message=None,
        attempts=tries.number,
        usage=total_usage(tries.used),
        elapsed_s=elapsed_s,
        finish_reason=_reason(reply.finish_reason),
        is_cut=ending(reply.finish_reason) is ErrorKind.TRUNCATED,
        confidence=label_confidence(reply.tokens, shape, text) if reply.tokens and shape else None,
        lesson=tries.lesson(None) if tries.has_more_room else None,
        # How it was bought, if anybody asked for another lane than realtime.
        lane=None if lane == tries.first_lane == "realtime" else lane,
    )


def _failed(error: LLMError, tries: Tries, elapsed_s: float) -> CallResult:
    lesson, error = tries.lesson(error), tries.cause(error)
    return CallResult(
        output=None,
        kind=error.kind,
        message=message_of(error),
        attempts=tries.number,
        usage=total_usage(tries.used),
        elapsed_s=elapsed_s,
        stop_after=stop_after(error.kind, error.stop_after),
        finish_reason=_reason(error.finish_reason),
        lesson=lesson,
        refused=tries.refused,
    )


def _reason(given: str | None) -> str | None:
    return storable(redacted(given[:_MAX_REASON])) if given else None
