"""One branch's calls: a deadline for each, and retries that wait on the loop."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from fanout.errors import LLMError
from fanout.json_text import bare_json
from fanout.llm.base import LLMReply
from fanout.llm.endings import require_complete
from fanout.llm.usage import believable, billed, total
from fanout.llm.validation import validated
from fanout.reasoning import without_reasoning
from fanout.retries import decide, more_room, stop_after
from fanout.runs import ErrorKind, Usage
from fanout.secrets import redacted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Self

    from fanout.llm.base import LLM, LLMRequest
    from fanout.spec import RetrySpec

__all__ = ["CallAttempt", "CallResult", "Gate", "complete_with_retries", "validate_json"]

_MAX_MESSAGE = 300
# How a provider says that a model never gives answers of the length that was asked for.
_ROOM_REFUSED = frozenset({ErrorKind.BAD_REQUEST, ErrorKind.CONTEXT_LENGTH})


class CallResult(msgspec.Struct, frozen=True, kw_only=True):
    """What the calls of a branch gave.

    Attributes:
        output: The answer, or None where all calls failed.
        kind: Why the last call failed, or None.
        message: The failure in words, or None.
        attempts: Calls made.
        usage: What they consumed.
        elapsed_s: Seconds from the first call to the end, waits included.
        stop_after: How many branches must fail alike until their run is stopped; 0: it is not.
    """

    output: str | None
    kind: ErrorKind | None
    message: str | None
    attempts: int
    usage: Usage
    elapsed_s: float
    stop_after: int = 0


class Gate(Protocol):
    """What each call goes through: it may have to wait, and it tells how it went."""

    async def enter(self, request: LLMRequest) -> None:
        """Wait until the call may begin."""

    async def leave(
        self, request: LLMRequest, reply: LLMReply | None, error: LLMError | None
    ) -> None:
        """Learn from how the call went."""


class CallAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """One call as an observer sees it: how it went, and nothing of what was said.

    Attributes:
        number: 1 for the first call of a branch.
        started_at: Seconds since the epoch.
        elapsed_s: Seconds that it took.
        kind: Why it failed, or None.
        usage: What it consumed, or None where nobody said.
        model: See LLMReply.
        response_id: See LLMReply.
        finish_reason: See LLMReply.
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
    validate: Callable[[str], str] | None = None,
    gate: Gate | None = None,
    max_output_kb: int | None = None,
    observe: Callable[[CallAttempt], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    rand: Callable[[], float] = random.random,
) -> CallResult:
    """Call until there is an answer or the policy says no. Raises nothing but CancelledError.

    Args:
        llm: The model.
        request: The call.
        policy: When to call again.
        timeout_s: Seconds that one call may take in all.
        validate: Returns the answer to keep, or raises LLMError where it cannot be used.
        gate: Holds calls up; what they wait there counts for no limit of time.
        max_output_kb: The longest answer to keep, in kilobytes; None is no limit.
        observe: Is told of each call when it has ended.
        clock: Seconds, rising.
        sleep: Waits.
        rand: A random number from 0 to 1.
    """
    started = clock()
    used: list[Usage] = []
    cut: LLMError | None = None
    attempt = 0
    while True:
        attempt += 1
        # As if it had begun so much later.
        started += await _entered(gate, request, clock)
        try:
            with _Observed(attempt, observe, clock) as observed:
                reply = await _call(llm, request, timeout_s, gate)
                observed.reply = reply
                require_complete(reply)
                _require_size(reply.text, max_output_kb)
                text = await validated(validate, reply.text) if validate else _plain(reply.text)
                text = _storable(text)
        except LLMError as error:
            used.append(observed.reply.usage if observed.reply else billed(error.kind, error.usage))
            elapsed_s = clock() - started
            room = more_room(
                error.kind,
                attempt=attempt,
                elapsed_s=elapsed_s,
                policy=policy,
                max_tokens=request.max_tokens,
                used_tokens=used[-1].output_tokens,
            )
            if room is not None and cut is None:
                cut = error
                request = msgspec.structs.replace(request, max_tokens=room)
                continue
            decision = decide(
                kind=error.kind,
                attempt=attempt,
                elapsed_s=elapsed_s,
                policy=policy,
                jitter=rand(),
                retry_after_s=error.retry_after_s,
            )
            if decision is None:
                return _result(None, _cause(error, cut), used, elapsed_s)
            await sleep(decision.wait_s)
        else:
            used.append(reply.usage)
            return _result(text, None, used, clock() - started)


def _cause(error: LLMError, cut: LLMError | None) -> LLMError:
    """Return why a branch failed: where more room was refused, that it had too little."""
    return cut if cut is not None and error.kind in _ROOM_REFUSED else error


class _Observed:
    """Tells an observer of a call when it has ended, in whatever way."""

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
        self._observe(
            CallAttempt(
                number=self._number,
                started_at=self._started_at,
                elapsed_s=self._clock() - self._started,
                kind=kind,
                usage=reply.usage if reply else getattr(error, "usage", None),
                model=reply.model if reply else None,
                response_id=reply.response_id if reply else None,
                finish_reason=reply.finish_reason if reply else None,
            )
        )


async def _entered(gate: Gate | None, request: LLMRequest, clock: Callable[[], float]) -> float:
    """Return the seconds that the gate took."""
    if gate is None:
        return 0.0
    came = clock()
    await gate.enter(request)
    return clock() - came


async def _call(llm: LLM, request: LLMRequest, timeout_s: float, gate: Gate | None) -> LLMReply:
    try:
        reply = await _answer(llm, request, timeout_s)
    except LLMError as error:
        if gate is not None:
            await gate.leave(request, None, error)
        raise
    if gate is not None:
        await gate.leave(request, reply, None)
    return reply


async def _answer(llm: LLM, request: LLMRequest, timeout_s: float) -> LLMReply:
    try:
        async with asyncio.timeout(timeout_s):
            reply: Any = await llm.complete(request)
    except TimeoutError:
        raise LLMError(ErrorKind.TIMEOUT, f"no answer within {timeout_s:g} s") from None
    except LLMError as error:
        raise _of_known_kind(error) from error.__cause__
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        raise LLMError(ErrorKind.INTERNAL, message) from error
    if not isinstance(reply, LLMReply):
        kind = type(reply).__name__
        raise LLMError(ErrorKind.INVALID_OUTPUT, f"the model returned {kind}, not an LLMReply")
    text: Any = reply.text
    if not isinstance(text, str):
        kind = type(text).__name__
        raise LLMError(ErrorKind.INVALID_OUTPUT, f"the model's text is of type {kind}")
    usage = believable(reply.usage)
    return reply if usage is reply.usage else msgspec.structs.replace(reply, usage=usage)


def _of_known_kind(error: LLMError) -> LLMError:
    """Return an error whose kind is one of the list: functions of users raise it, too."""
    kind: Any = error.kind
    if isinstance(kind, ErrorKind):
        return error
    known = kind if isinstance(kind, str) and kind in set(ErrorKind) else ErrorKind.INTERNAL
    return LLMError(
        ErrorKind(known),
        str(error),
        retry_after_s=error.retry_after_s,
        status=error.status,
        usage=error.usage,
        stop_after=error.stop_after,
    )


def _result(
    output: str | None, error: LLMError | None, used: list[Usage], elapsed_s: float
) -> CallResult:
    return CallResult(
        output=output,
        kind=error.kind if error else None,
        message=_storable(redacted(str(error))[:_MAX_MESSAGE]) if error else None,
        attempts=len(used),
        usage=total(used),
        elapsed_s=elapsed_s,
        stop_after=stop_after(error.kind, error.stop_after) if error else 0,
    )


def _require_size(text: str, max_output_kb: int | None) -> None:
    if max_output_kb is None or 4 * len(text) <= 1_000 * max_output_kb:
        return
    size = len(text.encode("utf-8", "replace"))
    if size > 1_000 * max_output_kb:
        raise LLMError(
            ErrorKind.INVALID_OUTPUT,
            f"the answer of {size / 1000:,.0f} kB is larger than FANOUT_MAX_OUTPUT_KB allows "
            f"({max_output_kb:,})",
        )


def _storable(text: str) -> str:
    """Return a text without halves of characters, which have no bytes: models do cut there."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _plain(text: str) -> str:
    """Return an answer that is to be no JSON: without the reasoning of the model before it."""
    plain = without_reasoning(text)
    if not plain.strip():
        raise LLMError(ErrorKind.INVALID_OUTPUT, "the answer is empty behind its reasoning")
    return plain


def validate_json(text: str) -> str:
    """Return the JSON of an answer without what is around it. Raises LLMError where it has none."""
    try:
        return bare_json(text)
    except ValueError as error:
        raise LLMError(ErrorKind.INVALID_OUTPUT, f"the answer is not JSON: {error}") from None
