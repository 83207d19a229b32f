"""What stands for the results that no provider gives: as JSON, for the store."""

from __future__ import annotations

import msgspec

from fanout.core.records import ErrorKind
from fanout.llm.batches.base import BatchError, BatchResult
from fanout.llm.usage import NO_USAGE

__all__ = ["NO_LINE", "UNKNOWN", "encoded", "failed"]


def encoded(result: BatchResult) -> bytes:
    """Return a result as JSON."""
    return msgspec.json.encode(result)


def failed(error: BatchError) -> bytes:
    """Return the result of a call that failed with its batch."""
    return encoded(BatchResult(custom_id="-", error=error))


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
