"""The answer of a branch: a kept one, that of an identical branch in flight, or that of its own calls."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from msgspec import structs

from fanout.core.answer_key import answer_key
from fanout.core.errors import LLMError
from fanout.core.kept_answers import KeptAnswer
from fanout.core.records import NO_CALL, total_usage
from fanout.llm.answers import rechecked_answer, validate_json
from fanout.llm.calls import CallResult
from fanout.llm.reviews import marked_answer
from workers.branch.shared_failures import SHARED, failed_as, shared_failure, terms_of
from workers.context.batches import until_ended

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fanout.core.spec import RunSpec
    from fanout.llm.base import LLMRequest
    from fanout.policy.progress import CallsSoFar
    from workers.context.answers import Answers, Ended, Flight, Settling

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
        attempt: Returns what names the run until its next retry.
        anew: That, if no answer from before the retry is to be taken; else empty.

    Attributes:
        key: The key of the answer.
        settling: Ends when a new answer is kept, or those that wait can know of a failure; None without
            either.
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
        attempt: Callable[[], Awaitable[str]],
        anew: str = "",
    ) -> None:
        self.settling: Settling | None = None
        self._answers = answers
        self._request = request
        self._so_far = so_far
        self._validate = validate_json if wants_json else None
        self._max_output_kb = max_output_kb
        self._attempt = attempt
        self._spec = spec
        self._patience_s = spec.retries.max_elapsed_s
        shape, turns = request.shape, request.turns
        self.key = answer_key(
            identity,
            prompt=request.prompt,
            system=request.system,
            temperature=request.temperature,
            max_tokens=request.max_tokens,
            seed=request.seed,
            stop=request.stop,
            shape=None if shape is None else shape.text,
            turns=[(turn.answer, turn.reply) for turn in turns] if turns else (),
            sample=sample,
            output_format="json" if wants_json else "text",
            on_truncated=spec.on_truncated,
            attempt=anew,
        )

    @property
    def _terms(self) -> str:
        return terms_of(self._spec, self._request)

    async def get(
        self,
        call: Callable[[], Awaitable[CallResult]],
        on_wait: Callable[[], None],
        *,
        gathers: bool = False,
        has_waited: bool = False,
    ) -> CallResult:
        """Return a kept answer, or the result of ``call``, whose answer is kept.

        Others that wait for it take its failure, if calls of theirs would fail alike.

        Args:
            call: Makes the calls.
            on_wait: Called when the branch begins to wait for the calls of another one.
            gathers: Whether ``call`` gathers calls, which find those that they may follow.
            has_waited: Whether the branch has waited for the calls of another one before.

        Raises:
            CallStoppedError: This worker stops. Also what ``call`` raises.
        """
        until = time.monotonic() + self._patience_s
        while (flight := self._answers.flight(self.key)) is not None:
            on_wait()
            try:
                ended = await self._answers.awaited(flight)
            except LookupError:
                if gathers:
                    return await self._asked(self._answers.begin_alone(self.key), call)
                continue
            if isinstance(ended, KeptAnswer):
                self._answers.count(saved=ended)
                return self._hit(ended)
            if ended is None:
                # It had no answer: to wait for one after the other would take for ever.
                return await self._asked(self._answers.begin_alone(self.key), call)
            has_waited = True
            if ended.terms == self._terms:
                return failed_as(ended, self._so_far)
            if self._answers.flight(self.key) is flight:
                # It is told to other processes. Who waits for calls on these terms waits for this one.
                break
        flight = self._answers.begin(self.key)
        flight.has_waited = has_waited
        return await self._lead(flight, call, on_wait, until)

    async def keep(self, call: Callable[[], Awaitable[CallResult]]) -> CallResult:
        """Return the result of ``call``, which is paid for already, once its answer is kept."""
        result = await self._asked(self._answers.begin_alone(self.key), call)
        if self.settling is not None:
            # Branches of other processes may wait for it.
            await until_ended(self.settling)
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
            found = await answers.found(flight, until=until, on_wait=on_wait)
            usable = found and await self._usable(found, flight)
            if found is not None and usable is None:
                # What is kept cannot be waited for; calls for it may have begun after a failure.
                until = 0.0 if isinstance(found, KeptAnswer) else until
                found = await answers.found(flight, until=until, on_wait=on_wait, anew=True)
                usable = await self._usable(found, flight)
        except BaseException:
            answers.leave(flight)
            raise
        if usable is None:
            return await self._asked(flight, call)
        answers.land(flight, usable)
        if isinstance(usable, KeptAnswer):
            return self._hit(usable)
        return failed_as(usable, self._so_far)

    async def _asked(self, flight: Flight, call: Callable[[], Awaitable[CallResult]]) -> CallResult:
        """Make the calls, and keep their answer, or tell others how they failed."""
        try:
            result = await call()
            self._answers.count()
            ended: Ended = _to_keep(result)
            if result.kind in SHARED:
                attempt = await self._attempt()
                ended = shared_failure(result, terms=self._terms, attempt=attempt)
        except BaseException:
            self._answers.leave(flight)
            raise
        self.settling = self._answers.keep(flight, ended)
        return result

    async def _usable(self, found: Ended, flight: Flight) -> Ended:
        """Return what was found, if this branch can take it."""
        if found is None or isinstance(found, KeptAnswer):
            return found and await self._sound(found)
        if found.terms != self._terms:
            return None
        # Who comes after a failure takes it only in the same run, and not after a retry.
        takes = flight.has_waited or found.attempt == await self._attempt()
        return found if takes else None

    async def _sound(self, kept: KeptAnswer) -> KeptAnswer | None:
        text = await rechecked_answer(
            kept.text,
            shape=self._request.shape,
            validate=self._validate,
            max_output_kb=self._max_output_kb,
        )
        if text is not None and self._request.review is not None:
            try:
                text = await marked_answer(self._request.review, text)
            except LLMError:
                return None
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
