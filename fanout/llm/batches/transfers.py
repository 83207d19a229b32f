"""Moves the files of batches in flat memory."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fanout.core.errors import LLMError
from fanout.core.records import ErrorKind
from fanout.llm.deadline import Deadline

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

__all__ = ["deadline", "file_parts"]

_BLOCK_BYTES = 256 * 1024


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Let the block take so many seconds. Raises LLMError after that."""
    try:
        with Deadline(seconds):
            yield
    except TimeoutError:
        raise LLMError(ErrorKind.TIMEOUT, f"no answer within {seconds:,.0f} s") from None


async def file_parts(
    path: Path, *, before: bytes = b"", after: bytes = b"", joint: bytes = b"\n"
) -> AsyncIterator[bytes]:
    """Yield the content of a file in parts, between two texts.

    Args:
        path: The file; its last line ends in a line break.
        before: What comes first.
        after: What comes last.
        joint: What stands for the line breaks between lines; the last line has none then.
    """
    if before:
        yield before
    offset, held = 0, b""
    # An upload that breaks off leaves this generator behind: it holds no open file.
    while block := await asyncio.to_thread(_block, path, offset):
        offset += len(block)
        if joint != b"\n":
            # JSON has no line break within a string.
            block = held + block
            held = b"\n" if block.endswith(b"\n") else b""
            block = block.removesuffix(b"\n").replace(b"\n", joint)
        yield block
    if after:
        yield after


def _block(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(_BLOCK_BYTES)
