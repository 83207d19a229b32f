"""How this package finds the programs that import it."""

from __future__ import annotations

import ast
import itertools
import sys
from importlib import metadata
from pathlib import Path

import pytest

import fanout
from fanout.core.errors import FanoutError
from fanout.system import programs

SOURCES = sorted(Path(fanout.__file__).parent.rglob("*.py"))
# A command of the CLI, a check of the doctor and a metric have that name, too.
OF_OTHER_THINGS = {"workers"}


def strings(path):
    return {
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def names_workers(text):
    first, _, rest = text.partition(".")
    return first == "workers" and text not in OF_OTHER_THINGS and rest[:1].isidentifier()


def test_no_string_names_a_module_of_the_workers():
    assert names_workers("workers.app")
    assert names_workers("workers.telemetry.flower:main")
    assert not names_workers("workers. Start one")
    assert len(SOURCES) > 100
    found = {(path.name, text) for path in SOURCES for text in strings(path) if names_workers(text)}
    assert found == set()


def test_no_command_line_runs_the_workers_by_name():
    """``[..., "-m", "workers"]``: that name alone is no module elsewhere."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.List | ast.Tuple):
                words = [each.value for each in node.elts if isinstance(each, ast.Constant)]
                assert ("-m", "workers") not in set(itertools.pairwise(words)), path


def test_the_commands_are_those_that_a_user_could_type():
    celery = ["-A", "workers.app", "worker"]
    assert programs.worker_command() == [sys.executable, "-m", "workers", *celery]
    assert programs.worker_command("--quiet")[3:] == ["--quiet", *celery]
    assert programs.program_command("flower") == [sys.executable, "-m", "workers.telemetry.flower"]


def test_what_is_installed_can_be_imported():
    entries = metadata.distribution("fanout-llm").entry_points.select(group="fanout.programs")
    assert {each.name for each in entries} == {
        "celery_app",
        "flower",
        "in_process",
        "progress",
        "worker",
    }
    assert programs.load_program("in_process").__name__ == "WorkerThread"


class Incomplete:
    def __init__(self, *entries):
        self.entry_points = metadata.EntryPoints(
            metadata.EntryPoint(name, value, "fanout.programs") for name, value in entries
        )


@pytest.mark.parametrize(
    "ask", [programs.worker_command, lambda: programs.program_command("flower")]
)
def test_an_installation_without_a_program_says_so(monkeypatch, ask):
    monkeypatch.setattr(metadata, "distribution", lambda _: Incomplete())
    with pytest.raises(FanoutError, match=r"is incomplete, it has no entry point '.*install it"):
        ask()


@pytest.mark.parametrize("value", ["workers.gone:WorkerThread", "workers.in_process:Gone"])
def test_a_program_that_cannot_be_imported_is_named(monkeypatch, value):
    monkeypatch.setattr(metadata, "distribution", lambda _: Incomplete(("in_process", value)))
    with pytest.raises(FanoutError, match=f"{value} cannot be imported"):
        programs.load_program("in_process")


def test_a_source_tree_that_is_not_installed_says_so(monkeypatch):
    def nothing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", nothing)
    with pytest.raises(FanoutError, match="it is not installed: install it"):
        programs.worker_command()
