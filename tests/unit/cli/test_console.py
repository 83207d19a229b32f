"""What is drawn on a terminal: frames in their place, colours where wanted, text that is text."""

from __future__ import annotations

import io
import os
import re
import signal
import sys

import pytest
from rich.console import Group
from rich.table import Table
from rich.text import Text

from fanout.cli.console import LiveFrame, TerminalConsole
from fanout.cli.views import draw
from fanout.system.terminal import can_draw
from tests.unit.system.test_terminal import ORDERS, Tty, obeyed

SGR = re.compile(r"\x1b\[[\d;]*m")
# What rich makes of the way back over two lines.
BACK = "\r\x1b[2K\x1b[1A\x1b[2K"


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    resize(monkeypatch, 30, 6)


def resize(monkeypatch, columns, lines):
    monkeypatch.setattr(Tty, "fileno", lambda _self: 99)
    size = os.terminal_size((columns, lines))
    monkeypatch.setattr("fanout.cli.console.os.get_terminal_size", lambda _fd: size)


def shown(stream):
    return stream.shown.decode()


def test_a_frame_is_drawn_over_the_one_before_and_stays():
    stream = Tty()
    frame = LiveFrame(stream)
    frame.draw("one\ntwo")
    frame.draw("1\n2")
    frame.close()
    frame.close()
    assert shown(stream) == f"one\ntwo{BACK}1\n2{BACK}1\n2\n"


def test_what_is_printed_is_above_the_frame_and_a_transient_frame_goes():
    stream = Tty()
    frame = LiveFrame(stream, is_transient=True)
    frame.print("before")
    frame.draw("one\ntwo")
    frame.print("note")
    frame.close()
    end = "\r\x1b[1A\x1b[2K\x1b[1A\x1b[2K"
    assert shown(stream) == f"before\none\ntwo{BACK}note\none\ntwo{BACK}one\ntwo\n{end}"


def test_a_frame_is_no_taller_than_the_terminal():
    stream = Tty()
    LiveFrame(stream).draw("\n".join("abcdefgh"))
    assert shown(stream).count("\n") == 5


def test_a_terminal_that_was_made_narrower_has_wrapped_the_lines(monkeypatch):
    resize(monkeypatch, 80, 20)
    stream = Tty()
    frame = LiveFrame(stream)
    frame.draw("x" * 70 + "\n\n" + "y" * 30)
    resize(monkeypatch, 30, 20)
    frame.draw("new")
    # Three rows, an empty one, and one more.
    back = "\r\x1b[2K" + "\x1b[1A\x1b[2K" * 4
    assert shown(stream).endswith(f"{'y' * 30}{back}new")


def test_after_a_stop_the_frame_is_drawn_anew_below_what_the_shell_has_printed():
    stream = Tty()
    frame = LiveFrame(stream)
    before = signal.getsignal(signal.SIGCONT)
    frame.draw("one\ntwo")
    os.kill(os.getpid(), signal.SIGCONT)
    frame.draw("1\n2")
    frame.draw("3")
    frame.close()
    assert shown(stream) == f"one\ntwo1\n2{BACK}3\r\x1b[2K3\n"
    assert signal.getsignal(signal.SIGCONT) is before


def test_the_cursor_is_never_hidden_so_that_no_death_leaves_it_hidden():
    stream = Tty()
    frame = LiveFrame(stream)
    frame.draw("x")
    frame.close()
    assert "\x1b[?25" not in shown(stream)


@pytest.mark.parametrize("order", [*ORDERS, "\x1b[31m", "\x1b]8;;http://x\x1b\\"])
@pytest.mark.parametrize("wrap", [str, Text, lambda text: Group(text, Text(text))])
def test_no_terminal_order_comes_through_in_any_wrapping(order, wrap):
    stream = Tty()
    table = Table(order, box=None)
    table.add_row(wrap(f"a{order}b"))
    frame = LiveFrame(stream)
    frame.draw(table)
    frame.print(f"a{order}b")
    frame.close()
    left = SGR.sub("", shown(stream).replace(BACK, "").replace("\r\x1b[2K", ""))
    left = left.replace("\x1b[1A", "").replace("\x1b[2K", "")
    assert obeyed(left) == []


def test_markup_emoji_codes_and_numbers_in_a_text_are_text(monkeypatch):
    resize(monkeypatch, 100, 20)
    stream = Tty()
    text = "[red]x[/] [/] :smile: [link=http://x]y[/link] 12 'z'"
    table = Table.grid()
    table.add_row(text)
    for renderable in (text, table):
        TerminalConsole(stream).print(renderable)
    assert shown(stream) == f"{text}\n" * 2


def test_a_text_is_made_harmless_before_it_is_laid_out():
    stream = Tty()
    table = Table(box=None, pad_edge=False)
    table.add_column("A", no_wrap=True)
    table.add_column("B")
    table.add_row("\x1b" * 9, "b")
    TerminalConsole(stream).print(table)
    assert max(map(len, SGR.sub("", shown(stream)).splitlines())) <= 30


@pytest.mark.parametrize(("no_color", "coloured"), [("1", False), ("", True), (None, True)])
def test_there_are_colours_unless_they_are_not_wanted(monkeypatch, no_color, coloured):
    if no_color is not None:
        monkeypatch.setenv("NO_COLOR", no_color)
    stream = Tty()
    monkeypatch.setattr(sys, "stdout", stream)
    draw(lambda width: Text("x" * (width > 0), "bold red"))
    assert bool(SGR.search(shown(stream))) is coloured


def test_what_an_encoding_lacks_is_drawn_all_the_same():
    stream = Tty(encoding="ascii")
    TerminalConsole(stream).print("caf\u00e9")
    assert shown(stream) == "caf\\xe9\n"


def test_a_terminal_that_was_closed_ends_no_run(monkeypatch):
    class Closed(Tty):
        def write(self, _text):
            raise OSError(5, "Input/output error")

    stream = Closed()
    monkeypatch.setattr(sys, "stderr", stream)
    frame = LiveFrame(stream)
    frame.draw("x")
    frame.print("y")
    frame.close()
    assert shown(stream) == ""


@pytest.mark.parametrize(("term", "fit"), [("xterm", True), ("dumb", False), ("", False)])
def test_a_dumb_terminal_gets_plain_lines(monkeypatch, term, fit):
    monkeypatch.setenv("TERM", term)
    assert can_draw(Tty()) is fit
    assert can_draw(io.StringIO()) is False
