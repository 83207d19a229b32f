"""The calls of one branch: a deadline for each call, and retries that wait on the loop."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from fanout.core.errors import LLMError
from fanout.core.records import ErrorKind, Usage, total_usage
from fanout.core.redaction import redacted
from fanout.llm.answers import WrongAnswerError, checked_answer, storable
from fanout.llm.base import LLMReply, Turn, unexpected
from fanout.llm.confidence import label_confidence
from fanout.llm.deadline import Deadline
from fanout.llm.finish_reasons import ending
from fanout.llm.sound_replies import sound_error, sound_reply
from fanout.llm.usage import billed
from fanout.policy.outages import judge_alone
from fanout.policy.retries import larger_token_limit, may_retry, retry_wait_s, stop_after

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Self

    from fanout.core.answer_shape import AnswerShape
    from fanout.core.spec_fields import RetrySpec
    from fanout.llm.base import LLM, LLMRequest
    from fanout.policy.outages import FailureVerdict

__all__ = ["CallAttempt", "CallGate", "CallResult", "complete_with_retries"]

_MAX_MESSAGE = 300
_MAX_REASON = 40
# How a provider refuses an answer length that the model does not support.
_ROOM_REFUSED = frozenset({ErrorKind.BAD_REQUEST, ErrorKind.CONTEXT_LENGTH})


class CallResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of all calls of a branch; for the other fields see Outcome.

    Attributes:
        stop_after: Stop the run after this many branches with the same failure; 0 for never.
        is_out_of_time: Whether only ``max_elapsed_s`` forbids another call.
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
    is_cut: bool = False
    confidence: float | None = None
    model: str | None = None
    usage_of: dict[str, Usage] = {}


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
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    rand: Callable[[], float] = random.random,
) -> CallResult:
    """Call until there is an answer or the policy gives up.

    A failed call raises nothing: see CallResult. What ``observe`` and ``sleep`` raise, what
    ``gate`` raises beside an LLMError, and a cancellation, end the calls.

    An answer that does not have the shape of the request is sent back with what is wrong, up to
    ``max_reasks`` times. Without a shape, ``validate`` returns the answer to store, or raises LLMError
    if the answer is invalid. An answer that was cut off at its limit of tokens is accepted if
    ``keeps_cut``, else asked for once more with twice the limit, where one was set and
    ``window_tokens``, the model's context window, allows it. ``gate`` delays calls; waits for a rate
    limit do not count towards any time limit. ``timeout_s`` is the deadline of one call in seconds.
    ``rand`` returns a random number from 0 to 1.
    """
    tries = _Tries(request, policy, clock(), reasks=max_reasks, window_tokens=window_tokens)
    while True:
        arrived, for_rate_s = clock(), 0.0
        if gate is not None:
            try:
                for_rate_s = await gate.enter(tries.request, left_s=tries.left_s(arrived))
            except LLMError as error:
                return _failed(error, tries.used, clock() - tries.started)
        tries.entered(waited_s=clock() - arrived, for_rate_s=for_rate_s)
        try:
            with _Observed(tries.number, observe, clock) as observed:
                reply = await _call(llm, tries.request, timeout_s)
                observed.reply = reply
                text = await checked_answer(
                    reply,
                    shape=request.shape,
                    validate=validate,
                    max_output_kb=max_output_kb,
                    keeps_cut=keeps_cut,
                )
        except WrongAnswerError as error:
            # The model works; waiting does not help.
            await _left(gate, tries.request, reply, None)
            if not tries.reasks(error, reply):
                return _failed(error, tries.used, clock() - tries.started)
        except LLMError as error:
            verdict = await _left(gate, tries.request, observed.reply, error) or judge_alone(error)
            wait_s = tries.failed(error, observed.reply, verdict, now=clock(), jitter=rand())
            if wait_s is None:
                result = _failed(tries.cause(error), tries.used, clock() - tries.started)
                is_late = tries.may_retry(error.kind)
                return msgspec.structs.replace(result, is_out_of_time=is_late)
            await sleep(wait_s)
        else:
            await _left(gate, tries.request, reply, None)
            tries.used.append(reply.usage)
            return _answered(text, reply, request.shape, tries.used, clock() - tries.started)


class _Tries:
    """The calls of a branch so far, and the decision after a further failure."""

    def __init__(
        self,
        request: LLMRequest,
        policy: RetrySpec,
        started: float,
        *,
        reasks: int,
        window_tokens: int | None,
    ) -> None:
        self.request = request
        self.started = started
        self.number = 0
        self.used: list[Usage] = []
        # The error of the last answer that a call followed with a higher token limit, or with what is
        # wrong with it.
        self._unusable: LLMError | None = None
        self._has_more_room = False
        self._policy = policy
        self._reasks = reasks
        self._window_tokens = window_tokens
        # Counts failures by their cost: a common failure costs less than one of this branch alone.
        self._failures = 0.0

    def left_s(self, now: float) -> float:
        """Return how many seconds the branch may still take."""
        return self._policy.max_elapsed_s - (now - self.started if self.number else 0.0)

    def entered(self, *, waited_s: float, for_rate_s: float) -> None:
        """Begin a further call after a wait at the gate: in all, and for a rate limit."""
        # Move the start forward so that these waits do not count as elapsed time.
        self.started += for_rate_s if self.number else waited_s
        self.number += 1

    def reasks(self, error: WrongAnswerError, reply: LLMReply) -> bool:
        """Continue the conversation with what is wrong; return whether a further call is left."""
        self.used.append(reply.usage)
        self._reasks -= 1
        turn = Turn(answer=error.answer, reply=error.reply)
        turns = (*self.request.turns, turn)
        self._unusable = error
        self.request = msgspec.structs.replace(self.request, turns=turns)
        return self._reasks >= 0

    def cause(self, error: LLMError) -> LLMError:
        """Return why the branch failed: its unusable answer, if only the call after that was refused.

        A conversation is longer than its prompt, and a provider may refuse a higher token limit.
        """
        before = self._unusable
        if before is None:
            return error
        is_cut = before.kind is ErrorKind.TRUNCATED
        refused = _ROOM_REFUSED if is_cut else frozenset({ErrorKind.CONTEXT_LENGTH})
        return before if error.kind in refused else error

    def failed(
        self,
        error: LLMError,
        reply: LLMReply | None,
        verdict: FailureVerdict,
        *,
        now: float,
        jitter: float,
    ) -> float | None:
        """Return the seconds until the next call, or None if the branch has failed."""
        self.used.append(reply.usage if reply else billed(error.kind, error.usage))
        self._failures += verdict.cost
        elapsed_s = now - self.started
        room = larger_token_limit(
            error.kind,
            spent=self._failures,
            elapsed_s=elapsed_s,
            policy=self._policy,
            max_tokens=self.request.max_tokens,
            prompt_tokens=self.used[-1].input_tokens,
            window_tokens=self._window_tokens,
        )
        if room is not None and not self._has_more_room:
            self._has_more_room, self._unusable = True, error
            self.request = msgspec.structs.replace(self.request, max_tokens=room)
            return 0.0
        return retry_wait_s(
            kind=error.kind,
            spent=self._failures,
            failures=self.number,
            elapsed_s=max(elapsed_s, verdict.down_s or 0.0),
            policy=self._policy,
            jitter=jitter,
            retry_after_s=error.retry_after_s,
            is_held=verdict.is_held,
        )

    def may_retry(self, kind: ErrorKind) -> bool:
        """Say whether only time can forbid another call after a failure."""
        return may_retry(kind, spent=self._failures, policy=self._policy)


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
            )
        )


async def _left(
    gate: CallGate | None, request: LLMRequest, reply: LLMReply | None, error: LLMError | None
) -> FailureVerdict | None:
    if gate is None:
        return None
    return await gate.leave(request, reply, error)


async def _call(llm: LLM, request: LLMRequest, timeout_s: float) -> LLMReply:
    try:
        return sound_reply(await _made(llm, request, timeout_s))
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        # Nobody cancelled this call, but something that it awaited was cancelled.
        raise unexpected(error) from error
    except LLMError:
        raise
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        # Also an exit must end its branch, not the worker.
        raise unexpected(error) from error


async def _made(llm: LLM, request: LLMRequest, timeout_s: float) -> Any:
    try:
        with Deadline(timeout_s):
            return await llm.complete(request)
    except TimeoutError:
        raise LLMError(ErrorKind.TIMEOUT, f"no answer within {timeout_s:g} s") from None
    except LLMError as error:
        # A user's function may raise it with any values.
        sound_error(error)
        raise


def _answered(
    text: str, reply: LLMReply, shape: AnswerShape | None, used: list[Usage], elapsed_s: float
) -> CallResult:
    return CallResult(
        output=text,
        kind=None,
        message=None,
        attempts=len(used),
        usage=total_usage(used),
        elapsed_s=elapsed_s,
        finish_reason=_reason(reply.finish_reason),
        is_cut=ending(reply.finish_reason) is ErrorKind.TRUNCATED,
        confidence=label_confidence(reply.tokens, shape, text) if reply.tokens and shape else None,
    )


def _failed(error: LLMError, used: list[Usage], elapsed_s: float) -> CallResult:
    return CallResult(
        output=None,
        kind=error.kind,
        message=storable(redacted(str(error))[:_MAX_MESSAGE]),
        attempts=len(used),
        usage=total_usage(used),
        elapsed_s=elapsed_s,
        stop_after=stop_after(error.kind, error.stop_after),
        finish_reason=_reason(error.finish_reason),
    )


def _reason(given: str | None) -> str | None:
    return storable(redacted(given[:_MAX_REASON])) if given else None
