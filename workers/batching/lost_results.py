"""What stands for the results that no provider gives: as JSON, for the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import structs

from fanout.core.errors import LLMError
from fanout.core.records import ErrorKind
from fanout.llm.batches.base import BatchError, BatchResult
from fanout.llm.usage import NO_USAGE, UNKNOWN_USAGE

if TYPE_CHECKING:
    from fanout.core.gathered import BatchRecord

__all__ = ["NO_LINE", "UNKNOWN", "encoded", "failed", "of_whole", "said_of", "unknown",
           "without_result"]  # fmt: skip

_MOST_CHARS = 200
_ADVICE = {
    ErrorKind.AUTH: "check the key and what it may do, with fanout doctor",
    ErrorKind.BUDGET: "check the account's balance and limits",
    ErrorKind.BAD_REQUEST: "a run of a few inputs in the lane realtime shows what the provider says",
}


def encoded(result: BatchResult) -> bytes:
    """Return a result as JSON."""
    return msgspec.json.encode(result)


def failed(error: BatchError) -> bytes:
    """Return the result of a call that failed with its batch."""
    return encoded(BatchResult(custom_id="-", error=error))


def said_of(error: LLMError | BatchError) -> str:
    """Return what kind of error a provider gave for a whole batch, in one line.

    The words of a reply may quote a line: a prompt of one of the runs that share the batch.
    """
    if error.status is not None:
        return f"{error.kind.value} (HTTP {error.status})"
    # No reply: the words are ours.
    message = error.message if isinstance(error, BatchError) else str(error)
    return f"{error.kind.value}: {message}"[:_MOST_CHARS]


def of_whole(error: LLMError | BatchError) -> BatchError:
    """Return the error of all calls of a batch, without the provider's words: see ``said_of``."""
    record = BatchError.of(error) if isinstance(error, LLMError) else error
    advice = _ADVICE.get(error.kind)
    message = f"the provider refused the batch: {said_of(error)}"
    message = f"{message}; {advice}" if advice else message
    return structs.replace(record, message=message, details=None)


def unknown(error: BatchError) -> bytes:
    """Return the result of a call that failed, and may have been billed."""
    return failed(structs.replace(error, usage=UNKNOWN_USAGE, is_own=True))


def without_result(batch: BatchRecord, *, answers: int) -> bytes:
    """Return the result of the calls that the results of a batch have nothing of.

    Args:
        batch: A batch whose results were read to their end.
        answers: How many of them are answers.
    """
    if batch.is_whole or (batch.succeeded or 0) > answers:
        message = "the batch has ended, and its results have none for this call"
        return unknown(BatchError(kind=ErrorKind.SERVER_ERROR, message=message))
    kind = ErrorKind.EXPIRED if batch.cancelled_at is None else ErrorKind.CANCELLED
    return failed(BatchError(kind=kind, message="the batch has no result for it"))


# The call was not made.
NO_LINE = failed(
    BatchError(
        kind=ErrorKind.SERVER_ERROR,
        message="the line of the call in its batch was lost",
        usage=NO_USAGE,
        is_own=True,
    )
)
# The provider may have answered it, or not.
UNKNOWN = failed(BatchError(kind=ErrorKind.TIMEOUT, message="nobody waits for its batch any more"))
