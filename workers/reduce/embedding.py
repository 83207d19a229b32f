"""Calls the function of a user that makes vectors of answers, which are then compared by these."""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from fanout.core.errors import LLMError, ModelError, SpecError
from fanout.core.records import NO_CALL, ErrorKind
from fanout.core.units import plural
from fanout.llm.base import LLMReply, LLMRequest
from fanout.llm.callables import CallableLLM
from fanout.llm.calls import complete_with_retries
from fanout.policy.vectors import vectors_from

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Iterable, Iterator

    from fanout.core.spec import RunSpec
    from workers.context.worker_context import WorkerContext

__all__ = ["RunStoppedError", "embedded"]

# The texts of a call, and the characters of each: models read no more.
_TEXTS = 64
_MOST_CHARS = 8_000
# Between two calls, whether the run goes on is looked at as often.
_LOOK_S = 1.0


class RunStoppedError(Exception):
    """The run is over, or begun again: its answers need no further vectors."""


def embedded(
    context: WorkerContext, spec: RunSpec, texts: Iterable[str], *, goes_on: Callable[[], bool]
) -> Iterator[array[float]]:
    """Yield the vector of each text, in order; the function is called again as a model is.

    Args:
        context: The worker's process.
        spec: The job, which names the function.
        texts: The texts.
        goes_on: Returns whether the run goes on.

    Raises:
        RunStoppedError: It does not; no further call is made, also not after one that failed.
        CallStoppedError: This worker stops: another one goes on.
        SpecError: The function cannot be used, or fails.
    """
    texts = (text[:_MOST_CHARS] for text in texts)
    size: int | None = None
    while some := list(islice(texts, _TEXTS)):
        if not goes_on():
            raise RunStoppedError
        context.models.in_flight.require_room()
        vectors = context.loop.wait_for(_called(context, spec, some, goes_on))
        size = len(vectors[0]) if size is None else size
        if len(vectors[0]) != size:
            sizes = f"of {size:,} and of {len(vectors[0]):,} numbers"
            raise SpecError(f"{spec.embed} returned vectors {sizes}", field="embed")
        yield from vectors


async def _called(
    context: WorkerContext, spec: RunSpec, texts: list[str], goes_on: Callable[[], bool]
) -> list[array[float]]:
    path = spec.embed or ""
    models = context.models
    try:
        llm = models.made.get(path) or await models.get(path)
    except ModelError as error:
        raise SpecError(str(error), field="embed") from None
    if not isinstance(llm, CallableLLM):
        raise SpecError(f"{path} is a model, not a function that makes vectors", field="embed")
    asked = _Asked(llm, texts)
    result = await complete_with_retries(
        asked,
        LLMRequest(prompt=""),
        policy=spec.retries,
        timeout_s=spec.timeout_s,
        sleep=partial(_rests, context, goes_on),
    )
    if result.kind is not None:
        attempts = plural(result.attempts, "attempt", "attempts")
        why = f"{result.kind.value}: {result.message} (after {attempts})"
        raise SpecError(f"{path} made no vectors of answers: {why}", field="embed")
    return asked.vectors


async def _rests(context: WorkerContext, goes_on: Callable[[], bool], seconds: float) -> None:
    """Wait before a further call.

    Raises:
        RunStoppedError: The run does not go on.
        CallStoppedError: This worker stops.
    """
    while True:
        step_s = min(seconds, _LOOK_S)
        await asyncio.sleep(step_s)
        context.models.in_flight.require_room()
        # It asks the server.
        if not await asyncio.to_thread(goes_on):
            raise RunStoppedError
        seconds -= step_s
        if seconds <= 0:
            return


class _Asked:
    """A function of the user as a model that is asked about some texts.

    Attributes:
        vectors: What it returned.
    """

    def __init__(self, llm: CallableLLM, texts: list[str]) -> None:
        self._llm = llm
        self._texts = texts
        self.vectors: list[array[float]] = []

    async def check(self) -> None:
        """Do nothing: only a call shows whether a function works."""

    async def complete(self, _request: LLMRequest) -> LLMReply:
        """Call the function. Raises LLMError."""
        self.vectors = await self._llm.call(list(self._texts), then=partial(_read, self._texts))
        return LLMReply(text="vectors", usage=NO_CALL)

    async def aclose(self) -> None:
        """Do nothing: the function is closed with the worker."""


def _read(texts: list[str], returned: Any) -> list[array[float]]:
    try:
        return vectors_from(returned, len(texts))
    except ValueError as error:
        message = f"the function {error}"
        raise LLMError(ErrorKind.INVALID_OUTPUT, message, stop_after=1) from None
