"""All output to the terminal, with control characters escaped.

Answers, names, worker records and errors come from models, documents and other machines. A
terminal interprets some of their characters: they can set the clipboard (OSC 52), move the cursor,
or reverse the reading order. On a terminal each of these is printed as its JSON escape, so that
JSON stays valid. So it is in a file or a pipe, which a terminal may show later, except in data: rows,
JSON, results and paths are not changed there.

Tables and live views are drawn by `fanout.cli.console`, which writes here.
"""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, Any, TextIO

import click

from fanout.system.text_parts import long_parts

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "asks",
    "can_draw",
    "indented",
    "notebook_shell",
    "one_line",
    "print_error",
    "print_line",
    "print_page",
    "print_parts",
    "print_text",
    "several_lines",
    "write_line",
    "write_raw",
]

_FIRST_ASTRAL = 0x10000

# Controls (C0, DEL, C1); marks that change the reading order, or are invisible; lone surrogates,
# which cannot be encoded. Joiners (U+200C, U+200D) stay: scripts and emoji need them.
_CONTROLS = (
    "\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u180e\\u200b\\u200e\\u200f\\u2028-\\u202e"
    "\\u2060-\\u206f\\ufeff\\ufff9-\\ufffb\\ud800-\\udfff\\U000e0000-\\U000e007f"
)
_IN_TEXT = re.compile(f"[{_CONTROLS}]")
_IN_LINE = re.compile(f"[{_CONTROLS}\\n]")
# Lone surrogates are bytes of the name of a file that is no text.
_IN_PIPE = re.compile("[" + _CONTROLS.replace("\\ud800-\\udfff", "") + "]")


def one_line(text: str) -> str:
    """Return a text as one safe line: tabs stay, line breaks and controls are escaped."""
    return _IN_LINE.sub(_shown, text)


def several_lines(text: str) -> str:
    """Return a text with controls escaped; its line breaks and tabs stay."""
    return _IN_TEXT.sub(_shown, text.replace("\r\n", "\n"))


def indented(text: str) -> str:
    """Return such a text with all lines but the first indented, so that none looks like a new one."""
    return several_lines(text).replace("\n", "\n  ")


def _shown(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < _FIRST_ASTRAL:
        return f"\\u{code:04x}"
    # JSON escapes these as two surrogates.
    high, low = divmod(code - _FIRST_ASTRAL, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"


def can_draw(stream: TextIO) -> bool:
    """Return whether a stream is a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM") not in {None, "", "dumb"}


def notebook_shell() -> Any:
    """Return the shell of the notebook's kernel that runs this program; None if there is none."""
    # Loaded by the kernel, and by nothing here.
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell if hasattr(shell, "kernel") else None


def asks(question: str) -> bool:
    """Ask on standard error, and return whether the user says yes; an interruption ends the command."""
    return click.confirm(one_line(question), err=True)


def print_line(text: str, *, err: bool = False, is_data: bool = False) -> None:
    """Print one line; data as it is where there is no terminal."""
    write_line(sys.stderr if err else sys.stdout, text, is_data=is_data)


def print_text(text: str, *, err: bool = False, is_data: bool = False) -> None:
    """Print a text of one or more lines, such as an answer; data as in ``print_line``."""
    stream = sys.stderr if err else sys.stdout
    safe = several_lines(text) if stream.isatty() else text if is_data else _piped(text)
    write_raw(stream, f"{safe}\n")


def print_parts(parts: Iterable[str]) -> None:
    """Print data of one or more lines on standard output, a part at a time: see ``print_line``."""
    stream, rest = sys.stdout, ""
    for part in long_parts(parts):
        if not stream.isatty():
            write_raw(stream, part)
            continue
        text = rest + part
        # A line break may go on in the next part.
        rest = "\r" if text.endswith("\r") else ""
        write_raw(stream, several_lines(text.removesuffix(rest)))
    write_raw(stream, several_lines(rest) + "\n")


def print_error(text: str) -> None:
    """Print an error message on standard error."""
    line = f"fanout: {text}"
    write_raw(sys.stderr, f"{indented(line) if sys.stderr.isatty() else _piped(line)}\n")


def print_page(page: str) -> None:
    """Print a file's content as UTF-8, independent of the encoding of standard output."""
    if sys.stdout.isatty():
        write_raw(sys.stdout, several_lines(page))
    else:
        sys.stdout.buffer.write(page.encode())
        sys.stdout.flush()


def write_line(stream: TextIO, text: str, *, is_data: bool = False) -> None:
    """Write one line to a stream; data as in ``print_line``."""
    safe = one_line(text) if stream.isatty() else text if is_data else _piped(text)
    write_raw(stream, f"{safe}\n")


def _piped(text: str) -> str:
    """Return a text for people as it goes to a file or a pipe: with its lines, and without controls."""
    return _IN_PIPE.sub(_shown, text.replace("\r\n", "\n"))


def write_raw(stream: TextIO, text: str) -> None:
    """Write a text as it is: its control characters are escaped, or are those of a console."""
    try:
        _write_all(stream, text)
    except (OSError, RuntimeError):
        # The terminal was closed: progress has no reader, but the command must finish its work.
        # Or a signal handler writes to this stream during a write.
        if stream is not sys.stderr:
            raise


def _write_all(stream: TextIO, text: str) -> None:
    try:
        stream.write(text)
    except UnicodeEncodeError:
        # A file name that is not text is written with its original bytes; the rest is escaped.
        encoding = stream.encoding or "utf-8"
        stream.flush()
        stream.buffer.write(_encoded(text, encoding))
    stream.flush()


def _encoded(text: str, encoding: str) -> bytes:
    try:
        return text.encode(encoding, "surrogateescape")
    except UnicodeEncodeError:
        return text.encode(encoding, "backslashreplace")
