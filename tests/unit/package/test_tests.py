"""The tests themselves: each can fail, and no two modules of them have one name."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
# These fail the test that calls them.
FAILING = {"fail", "raises", "warns", "wait_for"}


def functions_of(tree):
    return {node.name: node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)}


def name_of(call):
    return ast.unparse(call.func).rpartition(".")[2]


def can_fail(node, functions, seen=frozenset()):
    """Whether a function asserts something, or calls one of its module that does."""
    called = {name_of(part) for part in ast.walk(node) if isinstance(part, ast.Call)}
    return (
        any(isinstance(part, ast.Assert) for part in ast.walk(node))
        or bool(called & FAILING)
        or any(
            can_fail(functions[name], functions, seen | {name})
            for name in called & functions.keys() - seen
        )
    )


def without_assertion(source):
    functions = functions_of(ast.parse(source))
    tests = [name for name in functions if name.startswith("test_")]
    return [name for name in tests if not can_fail(functions[name], functions, frozenset({name}))]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def test_a(): f()", ["test_a"]),
        ("async def test_a(): await f()", ["test_a"]),
        ("def test_a(): assert f()", []),
        ("def test_a():\n  with pytest.raises(E): f()", []),
        ("def f(): assert g()\ndef test_a(): f()", []),
        ("def f(): return test_a()\ndef test_a(): f()", ["test_a"]),
    ],
)
def test_a_test_without_an_assertion_is_found(source, found):
    assert without_assertion(source) == found


def test_each_test_asserts_something():
    found = {
        str(path.relative_to(ROOT)): tests
        for path in (ROOT / "tests").rglob("test_*.py")
        if (tests := without_assertion(path.read_text()))
    }
    assert found == {}


def test_what_tests_and_benchmarks_share_has_names_of_its_own():
    """Both folders are on the path of tests: of two modules of one name, one hides the other."""
    benchmarks = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    packages = {path.parent.name for path in (ROOT / "benchmarks").glob("*/__init__.py")}
    shared = {path.stem for path in (ROOT / "tests").glob("*.py")} - {"__init__"}
    assert benchmarks & packages == set()
    assert shared & (benchmarks | packages) == set()


def test_what_tests_share_is_typed_as_the_package_is():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    overrides = config["tool"]["mypy"]["overrides"]
    [strict] = [each["module"] for each in overrides if each.get("disallow_untyped_defs")]
    shared = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "tests").rglob("*.py")
        if not path.name.startswith(("test_", "__init__"))
    }
    assert shared == set(strict)
