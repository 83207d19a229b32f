"""The one place that prints: what a terminal would obey is shown to people instead.

Answers, names, worker records and errors come from models, documents and other machines. A
terminal takes some of their characters as orders: to set the clipboard (OSC 52), to move the
cursor, to reverse the order of what is read. On a terminal each of them is printed as JSON escapes
it, so that JSON stays JSON. What goes to a file or a pipe is not touched.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "ERASE_LINE",
    "indented",
    "one_line",
    "print_error",
    "print_line",
    "print_page",
    "print_text",
    "several_lines",
    "write_frame",
    "write_line",
    "write_over",
]

ERASE_LINE = "\r\x1b[K"
_RESET = "\x1b[0m"
_COLOURS = {"green": "\x1b[32m", "yellow": "\x1b[33m", "red": "\x1b[31m"}
_FIRST_ASTRAL = 0x10000

# Controls (C0, DEL, C1); marks that change the order of reading, or cannot be seen; halves of
# characters, which cannot be encoded. Joiners (U+200C, U+200D) stay: scripts and emoji need them.
_ORDERS = (
    "\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u180e\\u200b\\u200e\\u200f\\u2028-\\u202e"
    "\\u2060-\\u206f\\ufeff\\ufff9-\\ufffb\\ud800-\\udfff\\U000e0000-\\U000e007f"
)
_IN_TEXT = re.compile(f"[{_ORDERS}]")
_IN_LINE = re.compile(f"[{_ORDERS}\\n]")


def one_line(text: str) -> str:
    """Return a text as one line that no terminal obeys; tabs stay, line breaks are shown."""
    return _IN_LINE.sub(_shown, text)


def several_lines(text: str) -> str:
    """Return a text that no terminal obeys; its line breaks and tabs stay."""
    return _IN_TEXT.sub(_shown, text.replace("\r\n", "\n"))


def indented(text: str) -> str:
    """Return such a text with all its lines but the first indented: none can pass for another."""
    return several_lines(text).replace("\n", "\n  ")


def _shown(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < _FIRST_ASTRAL:
        return f"\\u{code:04x}"
    # As JSON does, which knows no others.
    high, low = divmod(code - _FIRST_ASTRAL, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"


def print_line(text: str, *, err: bool = False, label: str = "", colour: str = "") -> None:
    """Print one line; with a ``label`` before it, in a colour where there is a terminal."""
    stream = sys.stderr if err else sys.stdout
    if label and colour and stream.isatty():
        label = f"{_COLOURS[colour]}{label}{_RESET}"
    line = one_line(text) if stream.isatty() else text
    _write(stream, f"{label}{line}\n")


def print_text(text: str, *, err: bool = False) -> None:
    """Print a text of one or more lines, such as an answer."""
    stream = sys.stderr if err else sys.stdout
    _write(stream, f"{several_lines(text) if stream.isatty() else text}\n")


def print_error(text: str) -> None:
    """Say on standard error what went wrong."""
    line = f"fanout: {text}"
    _write(sys.stderr, f"{indented(line) if sys.stderr.isatty() else line}\n")


def print_page(page: str) -> None:
    """Print a file: as UTF-8 whatever the encoding of standard output is."""
    if sys.stdout.isatty():
        _write(sys.stdout, several_lines(page))
    else:
        sys.stdout.buffer.write(page.encode())
        sys.stdout.flush()


def write_line(stream: TextIO, text: str) -> None:
    """Write one line to a stream."""
    _write(stream, f"{one_line(text) if stream.isatty() else text}\n")


def write_over(stream: TextIO, text: str, *, width: int) -> None:
    """Write the first ``width`` characters of a line over the line that a terminal shows."""
    _write(stream, f"{ERASE_LINE}{one_line(text)[:width]}")


def write_frame(
    stream: TextIO, lines: Iterable[str], *, above: int, width: int, height: int
) -> list[str]:
    """Draw lines over the ``above`` lines that a terminal shows last; return what was drawn."""
    shown = [one_line(line)[:width] for line in lines][:height]
    back = f"\x1b[{above}F" if above else ""
    # All at once, and each line erased behind its end only: emptying it first flickers.
    text = "".join(f"{line}\x1b[K\n" for line in shown)
    _write(stream, f"{back}{text}\x1b[J")
    return shown


def _write(stream: TextIO, text: str) -> None:
    try:
        _write_all(stream, text)
    except OSError:
        # A terminal that was closed: nobody reads what goes on, and the work has to be finished.
        if stream is not sys.stderr:
            raise


def _write_all(stream: TextIO, text: str) -> None:
    try:
        stream.write(text)
    except UnicodeEncodeError:
        # The name of a file that is no text goes out as it came in; the rest is shown escaped.
        encoding = stream.encoding or "utf-8"
        stream.flush()
        stream.buffer.write(_encoded(text, encoding))
    stream.flush()


def _encoded(text: str, encoding: str) -> bytes:
    try:
        return text.encode(encoding, "surrogateescape")
    except UnicodeEncodeError:
        return text.encode(encoding, "backslashreplace")
