"""Frames of lines that are drawn over each other on a terminal, without taking all of it."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, TextIO

from fanout.system.terminal import write_frame

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Screen", "terminal_size"]

_MIN_WIDTH = 20


class Screen:
    """Draws frames over each other.

    Args:
        stream: Where to draw.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown: list[str] = []

    @staticmethod
    def is_fit(stream: TextIO) -> bool:
        """Say whether frames can be drawn there at all."""
        return stream.isatty() and os.environ.get("TERM") not in {None, "", "dumb"}

    @property
    def width(self) -> int:
        """How long a line may be: one that wraps could not be drawn over."""
        return max(_MIN_WIDTH, terminal_size(self._stream).columns) - 1

    def draw(self, lines: Sequence[str]) -> None:
        """Put a frame in the place of the one before."""
        # Nor could a frame that scrolls.
        width, height = self.width, terminal_size(self._stream).lines
        self._shown = write_frame(
            self._stream, lines, above=self._above(), width=width, height=max(1, height - 1)
        )

    def leave(self) -> None:
        """Let the frame stay: what comes next is below it."""
        self._shown = []

    def _above(self) -> int:
        # A terminal that was made narrower since has wrapped the lines.
        size = terminal_size(self._stream)
        rows = sum(max(1, -(-len(line) // size.columns)) for line in self._shown)
        return min(rows, size.lines - 1)


def terminal_size(stream: TextIO) -> os.terminal_size:
    """Return the size of the terminal behind a stream; 80 by 24 where it does not say."""
    try:
        size = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        # It is none.
        size = os.terminal_size((0, 0))
    return size if size.columns and size.lines else shutil.get_terminal_size()
