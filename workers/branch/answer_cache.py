"""The answer of a branch: a kept one, that of an identical branch in flight, or that of its own calls."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from msgspec import structs

from fanout.core.answer_key import answer_key
from fanout.core.kept_answers import KeptAnswer
from fanout.core.records import NO_CALL, total_usage
from fanout.llm.answers import rechecked_answer, validate_json
from fanout.llm.calls import CallResult

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fanout.core.spec import RunSpec
    from fanout.llm.base import LLMRequest
    from fanout.policy.progress import CallsSoFar
    from workers.context.answers import Answers, Flight, Settling

__all__ = ["CachedAnswer"]


class CachedAnswer:
    """One answer to one request, from the cache or by calls.

    Args:
        answers: The kept answers of this process.
        identity: The identity of the model.
        request: The first request of the branch to this model.
        spec: The run's spec.
        sample: The number of the sample.
        wants_json: Whether an answer without a shape must be JSON.
        max_output_kb: The longest answer in kilobytes; None is any length.
        so_far: The calls of earlier deliveries.

    Attributes:
        key: The key of the answer.
        settling: Ends when a new answer is kept; None if there is none.
    """

    def __init__(
        self,
        answers: Answers,
        identity: str,
        request: LLMRequest,
        spec: RunSpec,
        *,
        sample: int,
        wants_json: bool,
        max_output_kb: int | None,
        so_far: CallsSoFar | None,
    ) -> None:
        self.settling: Settling | None = None
        self._answers = answers
        self._request = request
        self._so_far = so_far
        self._validate = validate_json if wants_json else None
        self._max_output_kb = max_output_kb
        self._patience_s = spec.retries.max_elapsed_s
        shape = request.shape
        self.key = answer_key(
            identity,
            prompt=request.prompt,
            system=request.system,
            temperature=request.temperature,
            max_tokens=request.max_tokens,
            seed=request.seed,
            stop=request.stop,
            shape=None if shape is None else shape.text,
            turns=[(turn.answer, turn.reply) for turn in request.turns],
            sample=sample,
            output_format="json" if wants_json else "text",
            on_truncated=spec.on_truncated,
        )

    async def get(
        self,
        call: Callable[[], Awaitable[CallResult]],
        on_wait: Callable[[], None],
        *,
        gathers: bool = False,
    ) -> CallResult:
        """Return a kept answer, or the result of ``call``, whose answer is kept.

        Args:
            call: Makes the calls.
            on_wait: Called when the branch begins to wait for the calls of another one.
            gathers: Whether ``call`` gathers calls, which find those that they may follow.

        Raises:
            CallStoppedError: This worker stops. Also what ``call`` raises.
        """
        until = time.monotonic() + self._patience_s
        while (flight := self._answers.flight(self.key)) is not None:
            on_wait()
            try:
                kept = await self._answers.awaited(flight)
            except LookupError:
                if gathers:
                    return await self._asked(self._answers.begin_alone(self.key), call)
                continue
            if kept is not None:
                return self._hit(kept)
            # It had no answer: to wait for one after the other would take for ever.
            return await self._asked(self._answers.begin_alone(self.key), call)
        return await self._lead(self._answers.begin(self.key), call, on_wait, until)

    async def keep(self, call: Callable[[], Awaitable[CallResult]]) -> CallResult:
        """Return the result of ``call``, which is paid for already, once its answer is kept."""
        result = await self._asked(self._answers.begin_alone(self.key), call)
        if self.settling is not None:
            # Branches of other processes may wait for it.
            await asyncio.wait([self.settling])
        return result

    async def _lead(
        self,
        flight: Flight,
        call: Callable[[], Awaitable[CallResult]],
        on_wait: Callable[[], None],
        until: float,
    ) -> CallResult:
        answers = self._answers
        try:
            kept = await answers.found(flight, until=until, on_wait=on_wait)
            sound = kept and await self._sound(kept)
            if sound is None and kept is not None:
                await answers.found(flight, until=0.0, on_wait=on_wait, anew=True)
        except BaseException:
            answers.leave(flight)
            raise
        if sound is None:
            return await self._asked(flight, call)
        answers.land(flight, sound)
        return self._hit(sound)

    async def _asked(self, flight: Flight, call: Callable[[], Awaitable[CallResult]]) -> CallResult:
        """Make the calls, and keep their answer."""
        try:
            result = await call()
        except BaseException:
            self._answers.leave(flight)
            raise
        self.settling = self._answers.keep(flight, _to_keep(result))
        return result

    async def _sound(self, kept: KeptAnswer) -> KeptAnswer | None:
        text = await rechecked_answer(
            kept.text,
            shape=self._request.shape,
            validate=self._validate,
            max_output_kb=self._max_output_kb,
        )
        return None if text is None else structs.replace(kept, text=text)

    def _hit(self, kept: KeptAnswer) -> CallResult:
        before = self._so_far
        return CallResult(
            output=kept.text,
            kind=None,
            message=None,
            attempts=before.attempts if before else 0,
            usage=before.usage if before and before.attempts else NO_CALL,
            elapsed_s=before.elapsed_s if before else 0.0,
            finish_reason=kept.finish_reason,
            confidence=kept.confidence,
            saved=kept.saved,
        )


def _to_keep(result: CallResult) -> KeptAnswer | None:
    """Return the answer of a result as it is kept; None if it is not complete and valid."""
    if result.kind is not None or result.output is None or result.is_cut:
        return None
    return KeptAnswer(
        text=result.output,
        usage=total_usage([result.usage]),
        confidence=result.confidence,
        finish_reason=result.finish_reason,
    )
