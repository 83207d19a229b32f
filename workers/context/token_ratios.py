"""How many tokens this worker's models make of a text, learnt by the fleet from its calls."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from fanout.core.errors import BrokerError
from fanout.core.tokens import utf8_bytes
from fanout.llm.usage_doubts import UsageDoubts
from fanout.policy.token_ratio import TokenRatio, TokenSums, bytes_by_kind

if TYPE_CHECKING:
    from fanout.core.records import Usage
    from fanout.llm.base import LLMReply, LLMRequest
    from fanout.stores import RedisStore

__all__ = ["TokenRatios"]

# After so many calls of this process, one of some is enough.
_ALL_CALLS = 256
_ONE_OF = 32
# What this process has learnt is added to what the fleet knows: one round trip for so many calls that it
# learnt from, or after so many seconds.
_CALLS_AT_ONCE = 32
_WAIT_S = 5.0

_log = logging.getLogger(__name__)


class _Model:
    """What this process knows of one model."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ratio = TokenRatio()
        self.is_read = False
        self.calls = 0
        self.doubts = UsageDoubts(name)
        # What the fleet has not got yet.
        self.new: list[TokenSums] = []
        self.is_due = False


class TokenRatios:
    """The ratios of a worker process; runs on the loop of the calls.

    Args:
        store: Has what the fleet knows; called in threads, as it blocks.
    """

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self._models: dict[str, _Model] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def expected_tokens(self, model: str, request: LLMRequest) -> int:
        """Return the tokens that the prompt of a request is expected to have for a model."""
        known = self._known(model)
        if not known.is_read:
            self._begin(known)
        return known.ratio.tokens(request.texts, shape_bytes=_shape_bytes(request))

    def believed(self, model: str, request: LLMRequest, reply: LLMReply) -> Usage:
        """Return what the provider has counted, without counts that no such call has."""
        return self._known(model).doubts.believed(request, reply)

    def observe(
        self, model: str, request: LLMRequest, reply: LLMReply, *, elapsed_s: float
    ) -> None:
        """Learn from a call that was answered.

        Args:
            model: The model.
            request: The call.
            reply: Its reply, with what the provider has counted.
            elapsed_s: Seconds that it took.
        """
        if not reply.usage.input_tokens:
            return
        known = self._models.get(model) or self._known(model)
        known.calls += 1
        if known.calls > _ALL_CALLS and known.calls % _ONE_OF:
            return
        known.doubts.saw(request, reply)
        usage = known.doubts.believed(request, reply)
        if not usage.input_tokens:
            return
        known.new.append(
            TokenSums.of_call(
                bytes_by_kind(request.texts, shape_bytes=_shape_bytes(request)),
                usage.input_tokens,
                output_tokens=usage.output_tokens,
                elapsed_s=elapsed_s,
            )
        )
        if len(known.new) >= _CALLS_AT_ONCE:
            self._begin(known)
        elif not known.is_due:
            known.is_due = True
            asyncio.get_running_loop().call_later(_WAIT_S, self._begin, known)

    async def flush(self) -> None:
        """Let the fleet have what this process has learnt."""
        for known in self._models.values():
            if known.new:
                self._begin(known)
        await asyncio.gather(*self._tasks)

    def _known(self, model: str) -> _Model:
        known = self._models.get(model)
        if known is None:
            known = self._models[model] = _Model(model)
        return known

    def _begin(self, known: _Model) -> None:
        known.is_due = False
        known.is_read = True
        new, known.new = known.new, []
        task = asyncio.get_running_loop().create_task(self._exchange(known, new))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _exchange(self, known: _Model, new: list[TokenSums]) -> None:
        try:
            known.ratio = await asyncio.to_thread(self._exchanged, known.name, new)
        except BrokerError as error:
            # What it has learnt is lost: it was an estimate, and there will be further calls.
            _log.warning("the tokens of %s are not learnt from now: %s", known.name, error)

    def _exchanged(self, model: str, new: list[TokenSums]) -> TokenRatio:
        if not new:
            return TokenRatio.fitted(self._store.token_sums(model))
        return TokenRatio.fitted(self._store.add_token_sums(model, TokenSums.total(new)))


def _shape_bytes(request: LLMRequest) -> int:
    """Return the bytes of the schema of an answer."""
    return 0 if request.shape is None else utf8_bytes(request.shape.in_words)
