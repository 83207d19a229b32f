"""Frames that are drawn over each other: what is written to the terminal."""

from __future__ import annotations

import io

import pytest

from fanout.cli.screen import Screen


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_frame_is_drawn_over_the_one_before(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("LINES", "4")
    stream = Terminal()
    screen = Screen(stream)
    screen.draw(["one", "x" * 99])
    screen.draw(["a", "b", "c", "d", "e"])
    screen.leave()
    screen.draw(["f"])
    # Nothing wraps, nothing scrolls: or the way back would be another one.
    assert stream.getvalue() == (
        f"one\x1b[K\n{'x' * 29}\x1b[K\n\x1b[J"
        "\x1b[2Fa\x1b[K\nb\x1b[K\nc\x1b[K\n\x1b[J"
        "f\x1b[K\n\x1b[J"
    )


def test_a_terminal_that_was_made_narrower_has_wrapped_the_lines(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "20")
    stream = Terminal()
    screen = Screen(stream)
    screen.draw(["x" * 70, "", "y" * 30])
    monkeypatch.setenv("COLUMNS", "30")
    screen.draw(["z" * 70])
    assert stream.getvalue().endswith(f"\x1b[5F{'z' * 29}\x1b[K\n\x1b[J")


@pytest.mark.parametrize(("term", "fit"), [("xterm", True), ("dumb", False), ("", False)])
def test_a_dumb_terminal_gets_plain_lines(monkeypatch, term, fit):
    monkeypatch.setenv("TERM", term)
    assert Screen.is_fit(Terminal()) is fit
    assert Screen.is_fit(io.StringIO()) is False
