"""No log call has the message of an error that may quote a prompt, a document or an answer."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# Their messages are about servers, files and stored data.
TOLD = {"BrokerError", "StorageError", "StoredDataError", "LostDataError", "RedisError", "OSError",
        "RuntimeError", "UnknownRunError", "ModelError"}  # fmt: skip
# What these await or call is of the store, or of the connection, and makes no call to a model.
OF_SERVERS = {
    ("workers/telemetry/reports.py", "FanoutError"),
    ("workers/branch/execution.py", "FanoutError"),
    ("workers/consumer/consumer.py", "Exception"),
}


def _names(node):
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}


def _whole(node, name):
    """Say whether an argument is an error itself, or its text."""
    if isinstance(node, ast.JoinedStr):
        return any(_whole(one.value, name) for one in node.values if hasattr(one, "value"))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id in ("str", "repr") and _whole(node.args[0], name)
    return isinstance(node, ast.Name) and node.id == name


def leaks(source):
    """Yield the kinds of error whose message a log call of a module may write, and the line."""
    for tried in ast.walk(ast.parse(source)):
        if not isinstance(tried, ast.Try):
            continue
        before = set()
        for handler in tried.handlers:
            caught = set() if handler.type is None else _names(handler.type)
            for call in ast.walk(handler):
                if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                    continue
                is_log = "log" in ast.unparse(call.func.value).lower()
                if not is_log or not any(_whole(one, handler.name) for one in call.args):
                    continue
                told = TOLD | ({"FanoutError"} if "LLMError" in before else set())
                yield from ((one, call.lineno) for one in sorted(caught - told))
            before |= caught


@pytest.mark.parametrize("room", ["fanout", "workers"])
def test_no_log_call_has_the_message_of_a_call_or_of_an_unknown_error(room):
    found = [
        (str(path.relative_to(ROOT)), kind, line)
        for path in sorted((ROOT / room).rglob("*.py"))
        for kind, line in leaks(path.read_text())
    ]
    assert [one for one in found if one[:2] not in OF_SERVERS] == []


@pytest.mark.parametrize(
    ("caught", "shown", "count"),
    [
        ("LLMError", "error", 1),
        ("Exception", "str(error)", 1),
        ("(BrokerError, LLMError)", 'f"x {error}"', 1),
        ("BrokerError", "error", 0),
        ("LLMError", "error.kind", 0),
        ("Exception", "type(error).__name__", 0),
    ],
)
def test_a_log_call_that_may_leak_is_found(caught, shown, count):
    source = f"try:\n    f()\nexcept {caught} as error:\n    _log.info('%s', {shown})\n"
    assert len(list(leaks(source))) == count
