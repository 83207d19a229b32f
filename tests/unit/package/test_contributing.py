"""CONTRIBUTING.md: what it tells to do is done to a copy of the package, and works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
RECIPES = dict(re.findall(r"^## (Add [^\n]+)\n(.*?)(?=^## )", PAGE, re.MULTILINE | re.DOTALL))


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def change(folder, diff):
    """Do what a block of differences says: each hunk has one place in its file."""
    for part in re.split(r"^--- ", diff, flags=re.MULTILINE)[1:]:
        name, _, hunks = part.partition("\n")
        path = folder / name
        text = path.read_text()
        for hunk in hunks.split("@@\n"):
            lines = hunk.splitlines(keepends=True)
            old = "".join(line[1:] for line in lines if line[0] in " -")
            new = "".join(line[1:] for line in lines if line[0] in " +")
            assert text.count(old) == 1, f"{name} has not once:\n{old}"
            text = text.replace(old, new)
        path.write_text(text)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the packages in which all recipes were followed, with the tests that they give."""
    folder = tmp_path_factory.mktemp("copy")
    for package in ("fanout", "workers"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    for recipe in RECIPES.values():
        for source in blocks(recipe, "python"):
            first, _, rest = source.partition("\n")
            path = folder / first.removeprefix("# ")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(rest)
        for diff in blocks(recipe, "diff"):
            change(folder, diff)
    return folder


def run(copy, *command):
    return subprocess.run(
        [sys.executable, *command],
        cwd=copy, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(copy)},
    )  # fmt: skip


def test_each_recipe_has_code_a_place_for_it_and_a_test():
    assert sorted(RECIPES) == [
        "Add a format", "Add a provider", "Add an aggregator", "Add an error kind",
    ]  # fmt: skip
    for recipe in RECIPES.values():
        assert any(source.startswith("# tests/unit/") for source in blocks(recipe, "python"))
        assert blocks(recipe, "diff")


def test_a_reader_who_follows_the_page_has_what_it_promises(copy):
    where = run(copy, "-c", "import fanout; print(fanout.__file__)")
    assert where.stdout.startswith(str(copy))
    options = ("--import-mode=importlib", "-p", "no:cacheprovider", "-c", os.devnull)
    done = run(copy, "-m", "pytest", "-q", "--rootdir", str(copy), *options, "tests")
    assert done.returncode == 0, done.stdout
    assert f"{len(RECIPES)} passed" in done.stdout


def test_what_the_page_has_one_write_passes_the_projects_own_checks(copy):
    config = ("--config", str(ROOT / "pyproject.toml"), "--no-cache")
    for check in (("check",), ("format", "--check")):
        done = run(copy, "-m", "ruff", *check, *config, "fanout")
        assert done.returncode == 0, done.stdout + done.stderr


def made(target, *options):
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", "--no-print-directory", target, *options],
        cwd=ROOT, capture_output=True, text=True, check=True,
        env={name: value for name, value in os.environ.items() if "MAKE" not in name},
    )  # fmt: skip
    return done.stdout


def test_an_edit_needs_no_other_install_and_the_suite_tests_the_built_package():
    assert "--editable" in made("dev")
    assert "--editable" not in made("test")
    assert "pytest tests/unit -x" in made("test-one", "T=tests/unit", "PYTEST_ARGS=-x")


def test_the_hooks_run_what_make_lint_runs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    lint = made("lint").splitlines()
    assert {hook["entry"] for hook in hooks} == set(lint[-len(hooks) :])


def test_every_command_of_the_page_is_a_target():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+(?:-[a-z]+)*)", PAGE)) <= targets


def test_every_page_and_file_that_is_named_is_there():
    named = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", PAGE)
    missing = [name for name in named if not (ROOT / name).exists()]
    assert missing == []
