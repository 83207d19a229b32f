"""The protocol of a provider's batch API, and its records."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

import msgspec

from fanout.core.errors import LLMError, ModelError
from fanout.core.records import (
    ErrorKind,  # noqa: TC001 - msgspec reads the annotation
    Usage,  # noqa: TC001
)
from fanout.llm.base import LLMReply  # noqa: TC001 - msgspec reads the annotation
from fanout.llm.reply_bodies import ErrorDetails  # noqa: TC001 - msgspec reads the annotation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection
    from pathlib import Path

    from fanout.llm.base import LLM, LLMRequest

__all__ = [
    "MISSING_S",
    "SETTLE_S",
    "BatchClient",
    "BatchError",
    "BatchIntent",
    "BatchLimits",
    "BatchResult",
    "BatchState",
    "BatchStatus",
    "BatchUnknownError",
    "batches_of",
    "check_batches",
    "require_custom_id",
]

# Seconds for which a request that was cut off may still make its batch.
SETTLE_S = 60.0
# Seconds for which a provider may not know a batch that it has: its servers may not agree yet.
MISSING_S = 300.0
# The characters and the length that all providers accept.
_CUSTOM_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class BatchState(StrEnum):
    """The state of a batch."""

    RUNNING = "running"  # its requests are checked or answered, or it is being cancelled
    ENDED = "ended"  # the provider is done with all requests
    FAILED = "failed"  # the provider refused it as a whole; it answered no request
    EXPIRED = "expired"  # its time is over; a part of the requests has results
    CANCELLED = "cancelled"  # it was cancelled; a part of the requests has results
    GONE = "gone"  # the provider does not know it, or has deleted its results


class BatchLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one batch may hold.

    Attributes:
        requests: The most requests.
        bytes: The most bytes of their lines.
    """

    requests: int
    bytes: int


class BatchIntent(msgspec.Struct, frozen=True, kw_only=True):
    """A batch that is about to be made. The caller stores it before the batch is submitted.

    Attributes:
        nonce: A random id of the batch, of letters, digits, ``-`` and ``_``, at most 64.
        created_at: When the intent was stored: seconds since the epoch.
        requests: How many requests the batch has.
        first_id: The ``custom_id`` of the first line. No other batch has it, also none with the same
            request sent again: where a provider stores no nonce, it tells whose a batch is.
        bytes: The size of its lines.
    """

    nonce: str
    created_at: float
    requests: int
    first_id: str
    bytes: int = 0


class BatchError(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a request of a batch, or a whole batch, has failed: the fields of an LLMError.

    Attributes:
        details: The details of the error, where the provider may have refused a part of the request.
    """

    kind: ErrorKind
    message: str
    retry_after_s: float | None = None
    status: int | None = None
    usage: Usage | None = None
    stop_after: int | None = None
    is_own: bool = False
    finish_reason: str | None = None
    details: ErrorDetails | None = None

    @classmethod
    def of(cls, error: LLMError, details: ErrorDetails | None = None) -> BatchError:
        """Return the record of an LLMError."""
        return cls(
            kind=error.kind,
            message=str(error),
            retry_after_s=error.retry_after_s,
            status=error.status,
            usage=error.usage,
            stop_after=error.stop_after,
            is_own=error.is_own,
            finish_reason=error.finish_reason,
            details=details,
        )

    def error(self) -> LLMError:
        """Return the LLMError."""
        return LLMError(
            self.kind,
            self.message,
            retry_after_s=self.retry_after_s,
            status=self.status,
            usage=self.usage,
            stop_after=self.stop_after,
            is_own=self.is_own,
            finish_reason=self.finish_reason,
        )


class BatchStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How far a batch is. A count that the provider does not give is None.

    Attributes:
        state: Its state.
        requests: How many requests it has.
        succeeded: How many have an answer.
        failed: How many have an error, or none by the end.
        error: Why it failed as a whole. The kind ``rate_limited`` says that the account has too
            much in its queue: a later or smaller batch may be accepted.
    """

    state: BatchState
    requests: int | None = None
    succeeded: int | None = None
    failed: int | None = None
    error: BatchError | None = None


class BatchResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The result of one request of a batch: a reply or an error. It can be stored as JSON.

    Attributes:
        custom_id: The id of the request.
        reply: The reply, whose lane is ``batch``; or None.
        error: The error, or None. It has the kind ``expired`` if the provider did not come to the
            request, and ``cancelled`` if the batch was cancelled before that: the request cost
            nothing, and may be sent again.
    """

    custom_id: str
    reply: LLMReply | None = None
    error: BatchError | None = None


class BatchUnknownError(LLMError):
    """The reply to the creation of a batch was lost: it may exist. See ``BatchClient.find``.

    It has ``is_own`` if the provider did reply, and the reply names no batch.
    """


class BatchClient(Protocol):
    """A provider's batch API for one model. An instance belongs to the asyncio loop of its model.

    All methods retry temporary failures for a while by themselves, and raise LLMError.
    """

    @property
    def limits(self) -> BatchLimits:
        """What one batch may hold."""

    async def line(self, custom_id: str, request: LLMRequest) -> bytes:
        """Return a request as a line of a batch's file, with its line break.

        Args:
            custom_id: Unique in its batch: letters, digits, ``-`` and ``_``, at most 64.
            request: The request; its lane is ignored.

        Raises:
            LLMError: The provider cannot take such a request.
            ValueError: The custom id is invalid.
        """

    async def submit(
        self,
        path: Path,
        intent: BatchIntent,
        *,
        before: Callable[[], Awaitable[None]] | None = None,
    ) -> str:
        """Make a batch of the lines in a file; return its id.

        Args:
            path: The file.
            intent: The intent.
            before: Awaited right before each request that makes the batch, after its file has gone up.
                If it raises, the request is not sent.

        Raises:
            BatchUnknownError: The batch may have been made, or not.
            LLMError: It was not made.
        """

    def settle_s(self, intent: BatchIntent) -> float:
        """Return for how many seconds after an intent another process may still make its batch."""

    async def find(self, intent: BatchIntent, known_ids: Collection[str]) -> str | None:
        """Return the id of the batch that was made of an intent, or None.

        None is final only ``settle_s`` after the intent: a request that was cut off may still arrive.

        Args:
            intent: The intent.
            known_ids: The ids of batches that were made of other intents.

        Raises:
            BatchUnknownError: It cannot be told yet. Ask again later.
            LLMError: The provider cannot be asked.
        """

    async def status(self, batch_id: str) -> BatchStatus:
        """Return how far a batch is."""

    def results(self, batch_id: str) -> AsyncIterator[BatchResult]:
        """Yield the results of a batch that does not run any more, each custom id once, in any order.

        Requests may be missing, in any state. Faults of single results are errors of these.

        Raises:
            LLMError: The results cannot be read to their end. Those before hold.
        """

    def taken(self, request: LLMRequest, result: BatchResult) -> LLMReply:
        """Return the reply in a result, as ``LLM.complete`` would.

        Call it in the process that builds the further lines of this request: it learns from an error
        what the provider refuses of such requests.

        Raises:
            LLMError: The request has failed. The kind ``server_error`` also says that a line that is
                made anew will leave out what the provider refused.
        """

    async def cancel(self, batch_id: str) -> None:
        """Cancel a batch; does nothing if it has ended. Results so far stay, and are paid for."""

    async def discard(self, batch_id: str) -> None:
        """Delete what the provider stores of a batch that has ended, as far as it lets us."""

    async def check(self) -> None:
        """Check that the key may use the batch API. Costs nothing.

        Raises:
            ModelError: It may not, or the server has no batch API.
        """


def batches_of(llm: LLM) -> BatchClient | None:
    """Return the batch API of a model, or None if it has none."""
    made = getattr(llm, "batches", None)
    return None if made is None else made()


async def check_batches(llm: LLM) -> str | None:
    """Return why no batches of a model can be made: empty if they can, None if it has no batch API."""
    client = batches_of(llm)
    if client is None:
        return None
    try:
        await client.check()
    except ModelError as error:
        return str(error)
    return ""


def require_custom_id(custom_id: str) -> str:
    """Return a custom id. Raises ValueError for one that a provider may refuse."""
    if not _CUSTOM_ID.fullmatch(custom_id):
        msg = f"a custom id has 1 to 64 letters, digits, - and _ (got {custom_id!r})"
        raise ValueError(msg)
    return custom_id
