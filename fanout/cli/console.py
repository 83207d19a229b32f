"""Draw tables and live frames on a terminal with rich.

Import this only to draw: loading rich takes a tenth of a second.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import IO, TYPE_CHECKING, Any, TextIO, cast

from rich.console import Console, ConsoleDimensions
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType, Segment
from rich.text import Text

from fanout.system.terminal import one_line, several_lines, write_raw

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import ConsoleOptions, RenderableType, RenderResult

__all__ = ["LiteralConsole", "LiveFrame", "TerminalConsole"]


class LiteralConsole(Console):
    """A rich console that prints text literally: no markup, emoji codes or control sequences.

    Args:
        file: Where it prints.
        **options: Others of rich's console.
    """

    def __init__(self, file: IO[str], **options: Any) -> None:
        super().__init__(
            file=file,
            force_terminal=True,
            force_jupyter=False,
            legacy_windows=False,
            markup=False,
            emoji=False,
            highlight=False,
            **options,
        )

    def render_str(self, text: str, **options: Any) -> Text:
        """Escape control characters before rich measures the text."""
        return super().render_str(
            several_lines(text), **{**options, "markup": False, "emoji": False, "highlight": False}
        )

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Escape control characters in text that did not pass `render_str`."""
        for segment in super().render(renderable, options):
            is_control = segment.control is not None
            yield segment if is_control else segment._replace(text=several_lines(segment.text))


class TerminalConsole(LiteralConsole):
    """The console of a terminal.

    Args:
        stream: A terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(
            cast("IO[str]", _DrawingStream(stream)),
            color_system=None if os.environ.get("NO_COLOR") else "auto",
        )

    @property  # type: ignore[misc] # rich has a setter
    def size(self) -> ConsoleDimensions:
        """The current size of this terminal; $COLUMNS may be out of date."""
        try:
            columns, lines = os.get_terminal_size(self.file.fileno())
        except (OSError, ValueError):
            columns = lines = 0
        return ConsoleDimensions(columns, lines) if columns and lines else super().size

    def show_cursor(self, show: bool = True) -> bool:  # noqa: ARG002, FBT001, FBT002 - rich's signature
        """Never hide the cursor: it would stay hidden after Ctrl-Z or a kill."""
        return False


class _DrawingStream:
    """A file for rich that writes to a stream through `fanout.system.terminal`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding = stream.encoding or "utf-8"
        self.fileno = stream.fileno
        self.isatty = stream.isatty

    def write(self, text: str) -> int:
        write_raw(self._stream, text)
        return len(text)

    def flush(self) -> None:
        """Do nothing: `write` flushes."""


class LiveFrame:
    """Lines of a terminal that are redrawn in place, below all printed lines.

    Args:
        stream: A terminal.
        is_transient: Whether to erase the frame when it is closed.
    """

    def __init__(self, stream: TextIO, *, is_transient: bool = False) -> None:
        self._stream = stream
        self._is_transient = is_transient
        self._console = TerminalConsole(stream)
        self._live: Live | None = None
        self._drawn = _MeasuredFrame("")
        self._handler: Any = None

    @property
    def width(self) -> int:
        """The number of columns of the terminal."""
        return self._console.width

    def draw(self, renderable: RenderableType) -> None:
        """Draw a frame in place of the previous one."""
        if self._live is not None and self._console.width < max(self._drawn.widths, default=0):
            self._erase_wrapped()
        self._drawn = _MeasuredFrame(renderable)
        if self._live is None:
            self._start()
        else:
            self._live.update(self._drawn, refresh=True)

    def print(self, text: str) -> None:
        """Print a line above the frame."""
        self._console.print(Text(one_line(text)), soft_wrap=True)

    def close(self) -> None:
        """Stop drawing; erase a transient frame, leave any other."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._handler is not None:
            signal.signal(signal.SIGCONT, self._handler)
            self._handler = None

    def _start(self) -> None:
        self._live = Live(
            self._drawn,
            console=self._console,
            auto_refresh=False,
            transient=self._is_transient,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start(refresh=True)
        if self._handler is None and threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGCONT, self._start_over)

    def _start_over(self, *_signal: object) -> None:
        """Abandon the frame, as other output follows it; draw the next one below."""
        # The old console still holds the abandoned frame.
        self._console = TerminalConsole(self._stream)
        self._live = None

    def _erase_wrapped(self) -> None:
        """Erase a frame whose lines wrapped because the terminal became narrower."""
        width, height = self._console.size
        rows = sum(max(1, -(-line // width)) for line in self._drawn.widths)
        erase = (ControlType.ERASE_IN_LINE, 2)
        up = ((ControlType.CURSOR_UP, 1), erase) * (min(rows, height) - 1)
        self._console.control(Control(ControlType.CARRIAGE_RETURN, erase, *up))
        self._start_over()


class _MeasuredFrame:
    """A frame that records the width of each line when it is rendered."""

    def __init__(self, renderable: RenderableType) -> None:
        self._renderable = renderable
        self.widths: list[int] = []

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._renderable, options, pad=False)
        self.widths = [Segment.get_line_length(line) for line in lines]
        for line in lines:
            yield from line
            yield Segment.line()
