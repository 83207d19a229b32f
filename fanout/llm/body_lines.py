"""Reads bodies of any length by lines, in flat memory and at a least rate."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from fanout.core.errors import LLMError
from fanout.core.records import ErrorKind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

__all__ = ["LEAST_RATE", "Line", "TooSlowError", "lines_of"]

# Bytes a second: the results of a batch that has ended are files.
LEAST_RATE = 1_000
# The beginning of a line that is too long, which is all that is kept of it.
_LINE_HEAD = 1_000


class Line(NamedTuple):
    """A line of a body, without its line break; only its beginning if it is too long."""

    data: bytes
    is_too_long: bool = False


class TooSlowError(LLMError):
    """A body trickles: it arrives, but would not end for days."""


async def lines_of(
    read: Callable[[], Awaitable[bytes]],
    *,
    most_bytes: int,
    slow_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Line]:
    """Yield the lines of a body.

    Args:
        read: Returns the next part of the body; nothing at its end.
        most_bytes: The longest line.
        slow_s: Seconds of waiting for the body within which LEAST_RATE has to be reached. The time that
            the caller takes for the lines does not count.
        clock: Returns seconds.

    Raises:
        TooSlowError: The body arrives too slowly.
    """
    buffer, is_skipping = bytearray(), False
    waited_s, arrived = 0.0, 0
    while True:
        begun_at = clock()
        block = await read()
        if not block:
            break
        waited_s, arrived = waited_s + clock() - begun_at, arrived + len(block)
        if waited_s >= slow_s:
            if arrived < LEAST_RATE * waited_s:
                message = f"the results arrive at less than {LEAST_RATE:,} bytes a second"
                raise TooSlowError(ErrorKind.TIMEOUT, message)
            waited_s, arrived = 0.0, 0
        begin = 0
        while (end := block.find(b"\n", begin)) >= 0:
            buffer += block[begin:end]
            begin = end + 1
            if not is_skipping:
                yield _line(buffer, most_bytes)
            buffer.clear()
            is_skipping = False
        if not is_skipping:
            buffer += block[begin:]
        if len(buffer) > most_bytes:
            # The rest of the line is read, and not kept.
            yield _line(buffer, most_bytes)
            buffer.clear()
            is_skipping = True
    if buffer and not is_skipping:
        yield _line(buffer, most_bytes)


def _line(buffer: bytearray, most_bytes: int) -> Line:
    if len(buffer) > most_bytes:
        return Line(bytes(buffer[:_LINE_HEAD]), is_too_long=True)
    return Line(bytes(buffer))
