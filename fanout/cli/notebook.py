"""Draw live frames in a notebook, without widgets: each replaces the one before.

Import this only to draw: loading rich takes a tenth of a second.
"""

from __future__ import annotations

import secrets
import sys
from io import StringIO
from typing import TYPE_CHECKING, Any

from rich.text import Text

from fanout.cli.console import LiteralConsole
from fanout.system.terminal import one_line

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["NotebookFrame"]

_WIDTH = 100
_PAGE = '<pre style="white-space:pre;overflow-x:auto;line-height:normal">{code}</pre>'


class NotebookFrame:
    """Lines in the output of a cell that are redrawn in place, below all printed lines.

    Closing it erases the frame, and leaves the printed lines.

    Args:
        shell: The shell of the notebook's kernel.
    """

    width = _WIDTH

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._id = secrets.token_hex(8)
        self._is_drawn = False
        self._printed: list[str] = []
        self._frame: RenderableType | None = None

    def draw(self, renderable: RenderableType) -> None:
        """Draw a frame in place of the previous one."""
        self._frame = renderable
        self._publish()

    def print(self, text: str) -> None:
        """Print a line above the frame."""
        self._printed.append(one_line(text))
        self._publish()

    def close(self) -> None:
        """Erase the frame."""
        self._frame = None
        if self._is_drawn:
            self._publish()

    def _publish(self) -> None:
        console = LiteralConsole(StringIO(), record=True, width=self.width)
        for line in self._printed:
            console.print(Text(line), soft_wrap=True)
        if self._frame is not None:
            console.print(self._frame)
        text = console.export_text(clear=False)
        html = console.export_html(inline_styles=True, code_format=_PAGE)
        # What a user prints meanwhile stays above.
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self._shell.display_pub.publish(
            {"text/plain": text, "text/html": html},
            {},
            transient={"display_id": self._id},
            update=self._is_drawn,
        )
        self._is_drawn = True
