"""What is printed on a terminal gives it no orders; data goes to a file or a pipe as it is."""

from __future__ import annotations

import ast
import io
import json
import logging
import sys
import unicodedata
from importlib import import_module
from pathlib import Path

import pytest

import fanout
import workers
from fanout.cli.progress import Progress
from fanout.cli.session import print_json
from fanout.system import terminal
from workers.telemetry.logs import _TextFormatter

# The package has a function of that name.
main = import_module("fanout.cli.main")

# OSC 52 sets the clipboard, CSI moves the cursor; the same as C1; overrides, isolates, tags.
ORDERS = [
    "\x1b]52;c;cm0gLXJm\x07", "\x1b[2J", "\x9b2J", "\x9d52;c;eA==\x9c", "\x00", "\x08", "\x7f",
    "\x0b", "\x0c", "\r", "\x85", "\u202e", "\u202a", "\u2066", "\u2069", "\u200f", "\u061c",
    "\u2028", "\u2029", "\u200b", "\ufeff", "\U000e0041", "\ud800", "\udc9b",
]  # fmt: skip
HARMLESS = "naïve «text» العربية מבחן 日本 👩\u200d🔬 क्\u200dष\t- a\\u001b"


class Tty(io.TextIOWrapper):
    """A stream that is, or is not, a terminal."""

    def __init__(self, *, is_terminal=True, encoding="utf-8"):
        self._written = io.BytesIO()
        super().__init__(self._written, encoding=encoding)
        self._is_terminal = is_terminal

    def isatty(self):
        return self._is_terminal

    @property
    def shown(self):
        self.flush()
        return self._written.getvalue()


def obeyed(text, allowed="\n\t"):
    """The characters of a text that a terminal might obey."""
    kinds = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    return [
        c for c in text if unicodedata.category(c) in kinds and c not in f"{allowed}\u200d\u200c"
    ]


@pytest.mark.parametrize("order", ORDERS)
def test_no_order_comes_through(order):
    text = f"before {order} after\n"
    assert obeyed(terminal.several_lines(text)) == []
    assert obeyed(terminal.one_line(text), allowed="\t") == []
    assert terminal.several_lines(text).startswith("before \\u")


def test_all_control_characters_of_unicode_are_shown():
    controls = "".join(map(chr, range(sys.maxunicode + 1)))
    shown = set(terminal.several_lines(controls))
    left = [c for c in shown if unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"}]
    assert sorted(left) == ["\t", "\n"]
    bidirectional = {c for c in shown if unicodedata.bidirectional(c) in {
        "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}}  # fmt: skip
    assert bidirectional == set()


def test_what_people_write_is_left_alone():
    assert terminal.one_line(HARMLESS) == HARMLESS
    assert terminal.several_lines(f"{HARMLESS}\r\nsecond\n") == f"{HARMLESS}\nsecond\n"


def test_json_stays_json_with_the_same_value():
    value = {"answer": "".join(o for o in ORDERS if o < "\ud800" or o > "\udfff") + "\n"}
    line = terminal.one_line(json.dumps(value, ensure_ascii=False))
    assert json.loads(line) == value
    assert obeyed(line, allowed="") == []


def test_a_line_of_an_error_cannot_pass_for_another():
    assert terminal.indented("first\nfanout: forged\rx") == "first\n  fanout: forged\\u000dx"


PRINTERS = {
    "line": terminal.print_line,
    "warning": lambda text: Progress(sys.stderr).warn(text),
    "text": terminal.print_text,
    "error": terminal.print_error,
    "on stderr": lambda text: terminal.print_text(text, err=True),
    "page": terminal.print_page,
    "stream": lambda text: terminal.write_line(sys.stdout, text),
    "progress": lambda text: Progress(sys.stderr).note(text),
    "usage": lambda text: main._show(main.click.UsageError(text)),
    "unexpected": lambda text: main._fail(ValueError, ValueError(text), None),
}


def printed(monkeypatch, text, printer, **options):
    stream = Tty(**options)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    PRINTERS[printer](text)
    return stream.shown


@pytest.mark.parametrize("printer", PRINTERS)
def test_every_way_to_print_is_harmless_on_a_terminal(monkeypatch, printer):
    # Half a character of a page cannot be written anywhere.
    shown = printed(monkeypatch, "".join(ORDERS), printer).decode()
    assert obeyed(shown) == []
    assert "\\u001b]52;" in shown


@pytest.mark.parametrize("printer", sorted(PRINTERS.keys() - {"page"}))
def test_a_pipe_gets_text_for_people_without_orders(monkeypatch, printer):
    raw = "".join(ORDERS[:-2])
    shown = printed(monkeypatch, raw, printer, is_terminal=False).decode()
    assert obeyed(shown) == []
    assert "\\u001b]52;" in shown


DATA = {
    "line": lambda text: terminal.print_line(text, is_data=True),
    "text": lambda text: terminal.print_text(text, is_data=True),
    "page": terminal.print_page,
}


@pytest.mark.parametrize("printer", DATA)
def test_a_pipe_gets_data_byte_for_byte(monkeypatch, printer):
    raw = "".join(ORDERS[:-2])
    monkeypatch.setitem(PRINTERS, "data", DATA[printer])
    assert raw.encode() in printed(monkeypatch, raw, "data", is_terminal=False)
    assert obeyed(printed(monkeypatch, raw, "data").decode()) == []


@pytest.mark.parametrize("is_terminal", [True, False])
def test_json_stays_as_it_is(monkeypatch, is_terminal):
    record = {"answer": "".join(ORDERS[:-2])}
    monkeypatch.setitem(PRINTERS, "json", print_json)
    shown = printed(monkeypatch, record, "json", is_terminal=is_terminal)
    assert json.loads(shown) == record


def test_what_an_encoding_lacks_is_printed_all_the_same(monkeypatch):
    shown = printed(monkeypatch, "caf\u00e9 \u65e5", "line", encoding="ascii")
    assert shown == b"caf\\xe9 \\u65e5\n"
    # The name of a file that is no text.
    name = b"caf\xe9".decode(errors="surrogateescape")
    assert printed(monkeypatch, name, "line", is_terminal=False) == b"caf\xe9\n"


def test_a_warning_of_a_library_is_harmless(monkeypatch):
    assert logging.lastResort is not None
    monkeypatch.setattr(logging, "lastResort", type(logging.lastResort)(logging.WARNING))
    main._tame_logs()
    record = logging.LogRecord("x", logging.WARNING, "f", 1, "a\x1b[2J\nb", None, None)
    assert logging.lastResort.format(record) == "a\\u001b[2J\n  b"


@pytest.mark.parametrize("use_color", [True, False])
def test_a_line_of_a_workers_log_cannot_be_forged(use_color):
    forged = "x\n[2026-01-01 00:00:00: ERROR/MainProcess] forged\r\x1b]52;c;eA==\x07"
    record = logging.LogRecord("workers", logging.ERROR, "f", 1, "%s", (forged,), None)
    record.exc_text = f"Traceback\nValueError: {forged}"
    text = _TextFormatter(use_color=use_color).format(record)
    text = text.removeprefix("\x1b[1;31m").removesuffix("\x1b[0m")
    first, *rest = text.split("\n")
    assert first.startswith("[")
    assert len(rest) == 4
    assert all(line.startswith("  ") for line in rest)
    assert obeyed(text) == []


# Each writes to a pipe that another program reads.
OTHERS = {"fanout/embedded_guard.py"}


def modules():
    for package in (fanout, workers):
        root = Path(package.__file__).parent
        for path in sorted(root.rglob("*.py")):
            name = str(path.relative_to(root.parent))
            if name not in OTHERS and name != "fanout/system/terminal.py":
                yield name, ast.parse(path.read_text())


def last_name(node):
    """The last name of what a node calls; None if it calls nothing, or what has no name."""
    called = node.func if isinstance(node, ast.Call) else None
    return getattr(called, "attr", getattr(called, "id", None))


PRINTING = {"print", "pprint", "write", "writelines", "echo", "secho", "style", "confirm", "prompt",
            "echo_via_pager"}  # fmt: skip


def prints(node):
    """Whether a node prints, or writes to a standard stream."""
    if last_name(node) not in PRINTING:
        return False
    called = ast.unparse(node.func)
    streams = ("sys.stdout.", "sys.stderr.", "sys.__stdout__.", "self._stream.", "stream.")
    writes = called.startswith(streams) and called.endswith((".write", ".writelines"))
    click = {"click.echo", "click.secho", "click.style", "click.confirm", "click.prompt", "echo"}
    return writes or called in {"print", "pprint", *click} or called == "click.echo_via_pager"


def test_no_other_module_prints():
    found = [
        f"{name}:{node.lineno} {ast.unparse(node.func)}"
        for name, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and prints(node)
    ]
    assert found == []


def test_what_draws_has_one_console_and_reads_no_markup():
    found = [
        f"{name}:{node.lineno}"
        for name, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and last_name(node) in {"Console", "from_markup", "from_ansi"}
    ]
    assert found == []
