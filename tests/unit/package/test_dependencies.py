"""What the code imports is declared, and what is declared is locked."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = [name for name in PROJECT["optional-dependencies"] if name != "dev"]
# Asking whether a package is there (find_spec) is no import.
LOADERS = {"import_module", "__import__"}
# What an extra brings, and who may import it.
OF_EXTRAS = {
    "xllamacpp": {"fanout.llm.local_server"},
    "litellm": {"fanout.llm.litellm"},
    "tiktoken": {"fanout.inputs.token_counters"},
    "tokenizers": {"fanout.inputs.token_counters"},
    "huggingface_hub": {"fanout.inputs.token_counters"},  # which tokenizers fetches them with
    "opentelemetry": {"workers.telemetry.spans"},
    "bm25s": {"fanout.retrieval.extra"},
    "numpy": {"fanout.policy.vectors", "fanout.retrieval.extra"},
}
# Several modules import these, each where it needs them.
SHARED_EXTRAS = {"kreuzberg", "openpyxl", "pyarrow"}
# fsspec imports it for s3://, and llama.cpp loads a library of it: no line of ours names them.
BY_OTHERS = {"s3fs", "cmeel-libomp"}


def named(tree):
    """Every module that a source names to import it, at its top or where it is needed."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else None
            called = node.func.id if isinstance(node.func, ast.Name) else called
            first = node.args[0]
            if called in LOADERS and isinstance(first, ast.Constant):
                yield first.value


@cache
def imports():
    """Each foreign package that is imported, and by which modules of ours."""
    found = {}
    for path in sorted([*ROOT.glob("fanout/**/*.py"), *ROOT.glob("workers/**/*.py")]):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for name in named(ast.parse(path.read_text())):
            package = name.partition(".")[0]
            if package not in sys.stdlib_module_names and package not in {"fanout", "workers"}:
                found.setdefault(package, set()).add(module)
    return found


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(lines):
    return {normal(re.split(r"[^A-Za-z0-9._-]", line)[0]) for line in lines}


def locked(name):
    text = (ROOT / name).read_text()
    return dict(re.findall(r"^([a-z0-9._-]+)(?:\[[^\]]+\])?==(\S+)", text, re.MULTILINE))


@pytest.mark.parametrize(
    "source",
    [
        "import acme", "import acme.tools as tools", "from acme.tools import use",
        "def use():\n    from acme import tools",
        "import importlib\nimportlib.import_module('acme.tools')",
        "tools = __import__('acme.tools')",
    ],
)  # fmt: skip
def test_an_import_is_found_wherever_it_is(source):
    assert "acme" in {name.partition(".")[0] for name in named(ast.parse(source))}


def test_everything_that_is_imported_is_declared():
    """By name, and not because something else happens to bring it along."""
    base = declared(PROJECT["dependencies"])
    homes = metadata.packages_distributions()
    for package, modules in imports().items():
        if package in OF_EXTRAS:
            assert modules <= OF_EXTRAS[package]
            continue
        if package in SHARED_EXTRAS:
            continue
        brought = {normal(name) for name in homes.get(package, [package])}
        assert brought & base, f"{package} is imported by {sorted(modules)}"


def test_everything_that_an_extra_declares_is_imported():
    homes = metadata.packages_distributions()
    used = {normal(name) for package in imports() for name in homes.get(package, [package])}
    extras = declared(line for e in EXTRAS for line in PROJECT["optional-dependencies"][e])
    assert extras - used == BY_OTHERS


def test_what_a_dependency_needs_for_redis_is_asked_of_it():
    """Kombu imports it only when it connects, and has it as an extra."""
    kombu = [line for line in PROJECT["dependencies"] if line.startswith("kombu")]
    assert [line.startswith("kombu[redis]") for line in kombu] == [True]
    needs = [line for line in metadata.requires("kombu") if 'extra == "redis"' in line]
    assert declared(needs) <= locked("ops/docker/requirements-runtime.lock").keys()


LOCKS = {
    "requirements.lock": [
        "documents",
        "tables",
        "local",
        "s3",
        "otel",
        "tokens",
        "retrieval",
        "dev",
    ],
    "requirements-demo.lock": ["documents", "tables", "local"],
    "ops/docker/requirements-runtime.lock": [],
    "ops/docker/requirements-s3.lock": ["s3"],
    "ops/docker/requirements-otel.lock": ["otel"],
    "ops/docker/requirements-retrieval.lock": ["retrieval"],
    "ops/docker/requirements-litellm.lock": ["litellm"],
}


def test_every_lock_is_known():
    found = {str(path.relative_to(ROOT)) for path in ROOT.glob("**/requirements*.lock")}
    found = {name for name in found if not name.startswith(".")}
    assert found == {*LOCKS, "ops/docker/requirements-build.lock"}
    assert {extra for extras in LOCKS.values() for extra in extras} == {*EXTRAS, "dev"}


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_has_what_is_declared_at_the_versions_that_are_tested(lock):
    every, runtime = locked("requirements.lock"), locked("ops/docker/requirements-runtime.lock")
    these = locked(lock)
    wanted = PROJECT["dependencies"] + [
        line for extra in LOCKS[lock] for line in PROJECT["optional-dependencies"][extra]
    ]
    assert declared(wanted) <= these.keys()
    assert runtime.items() <= these.items()
    # No test runs with litellm: what it alone brings is not among what is tested.
    differing = {name for name, version in these.items() if every.get(name, version) != version}
    assert differing == set()
    if "litellm" not in LOCKS[lock]:
        assert these.keys() <= every.keys()
    text = (ROOT / lock).read_text()
    assert "://" not in text.replace("s3://", "")
    assert text.count("==") <= text.count("--hash=sha256:")


@pytest.mark.parametrize("lock", [lock for lock in LOCKS if lock != "requirements.lock"])
def test_what_ships_has_no_tools_of_developers(lock):
    tools = declared(PROJECT["optional-dependencies"]["dev"])
    wanted = [line for extra in LOCKS[lock] for line in PROJECT["optional-dependencies"][extra]]
    asked = declared(PROJECT["dependencies"] + wanted)
    if "litellm" in LOCKS[lock]:
        tools -= {"httpx", "openai", "tiktoken", "tokenizers"}  # which litellm itself needs
    assert locked(lock).keys() & (tools - asked) == set()


def test_one_command_makes_all_locks():
    script = (ROOT / "ops/make-locks").read_text()
    for lock in [*LOCKS, "ops/docker/requirements-build.lock"]:
        assert f"lock {lock} " in script
        assert "Made by ops/make-locks." in (ROOT / lock).read_text().splitlines()[0]


def test_the_wheel_is_built_by_the_tools_that_are_tested():
    build = locked("ops/docker/requirements-build.lock")
    assert "hatchling" in build
    assert build.items() <= locked("requirements.lock").items()


def made(target):
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", "--no-print-directory", target],
        cwd=ROOT, capture_output=True, text=True, check=True,
        # The tests may be started by make, too.
        env={name: value for name, value in os.environ.items() if "MAKE" not in name},
    )  # fmt: skip
    return done.stdout


def test_the_demo_installs_nothing_for_developers_and_says_how_to_go_on():
    commands = made("demo")
    wanted = {"requirements-demo.lock", "ops/docker/requirements-build.lock"}
    assert set(re.findall(r"\S+\.lock\b", commands)) == wanted
    # What builds the wheel is not left there.
    assert "rm -rf .venv-demo/.build" in commands
    assert ".venv/" not in commands
    assert commands.splitlines()[-1] == "cat examples/next.txt"
    text = (ROOT / "examples/next.txt").read_text()
    for name in re.findall(r"\S+\.md|examples/\w+", text):
        assert (ROOT / name).exists()
