"""CONTRIBUTING.md: its recipes are applied to a copy of the package, and work."""

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
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
RECIPES = {name: text for name, text in SECTIONS.items() if name.startswith("Add ")}
MOST_LINES = 10


def diff_of(recipe):
    [name] = re.findall(r"git apply (\S+\.diff)", recipe)
    return ROOT / name


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the packages in which all recipes were followed, with the tests that they give."""
    folder = tmp_path_factory.mktemp("copy")
    for package in ("fanout", "workers"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    for recipe in RECIPES.values():
        applied = subprocess.run(
            ["git", "apply", diff_of(recipe)],
            cwd=folder, capture_output=True, text=True, check=False,
            env={**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)},
        )  # fmt: skip
        assert applied.returncode == 0, applied.stderr
    return folder


def run(copy, *command):
    return subprocess.run(
        [sys.executable, *command],
        cwd=copy, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(copy)},
    )  # fmt: skip


def test_there_is_a_recipe_for_each_part_that_is_often_added():
    assert sorted(RECIPES) == [
        "Add a format", "Add a provider", "Add an aggregator", "Add an error kind",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["Set up", "Run tests", "The tiers of tests", *RECIPES])
def test_a_section_has_ten_lines_at_most(name):
    lines = [line for line in SECTIONS[name].splitlines() if line and not line.startswith("```")]
    assert len(lines) <= MOST_LINES, lines


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_each_file_that_its_change_touches_and_runs_its_test(name):
    changed = re.findall(r"^\+\+\+ b/(.*)$", diff_of(RECIPES[name]).read_text(), re.MULTILINE)
    assert changed
    assert [path for path in changed if path not in RECIPES[name]] == []


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
