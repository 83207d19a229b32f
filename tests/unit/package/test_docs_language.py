"""The pages of the project are plain standard English in lines that fit a screen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MOST_COLUMNS = 110
# Words that keep a sentence from saying who does what.
BANNED = re.compile(r"\b(whoever|whatever|whomever|borne|said)\b", re.IGNORECASE)
FOLDERS = ("docs", "ops", "examples", "benchmarks", ".github")
PAGES = sorted([*ROOT.glob("*.md"), *(p for one in FOLDERS for p in ROOT.glob(f"{one}/**/*.md"))])
PAGES = [path for path in PAGES if path.parent.name != "results"]
# What operators and readers of examples see besides: settings, rules and scripts with comments.
# Of examples, files that are read by them.
DOCUMENTS = {".csv", ".docx", ".html", ".ipynb", ".pdf"}
OTHERS = [ROOT / "docker-compose.yml", ROOT / "Makefile"]
OTHERS += sorted(
    path
    for folder in ("ops", "examples")
    for path in ROOT.glob(f"{folder}/**/*")
    if path.is_file() and path.suffix not in {".md", ".json", ".lock", *DOCUMENTS}
)

CODE = sorted(path for package in ("fanout", "workers") for path in ROOT.glob(f"{package}/**/*.py"))

TESTS = sorted(ROOT.glob("tests/**/*.py"))


def named(path):
    return str(path.relative_to(ROOT))


def long_lines(text):
    """The lines that are too long, with their numbers; an address cannot be broken."""
    found = [
        (number, line)
        for number, line in enumerate(text.splitlines(), 1)
        if len(line) > MOST_COLUMNS and not re.fullmatch(r"\s*(\S+: )?\S+", line)
    ]
    return [f"{number}: {line[:60]}..." for number, line in found]


def banned_words(text):
    lines = enumerate(text.splitlines(), 1)
    return [f"{number}: {word[0]}" for number, line in lines for word in BANNED.finditer(line)]


def test_there_are_pages():
    assert {"README.md", "docs/architecture.md", "ops/README.md"} <= set(map(named, PAGES))
    assert "ops/redis/redis.conf" in map(named, OTHERS)


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_the_lines_of_a_page_fit_a_screen(path):
    assert long_lines(path.read_text()) == []


@pytest.mark.parametrize("path", [*PAGES, *OTHERS], ids=named)
def test_a_page_names_the_actor(path):
    if named(path).startswith(("examples/amendments/", "examples/reviews/")):
        pytest.skip("texts of others")
    assert banned_words(path.read_text(errors="replace")) == []


def test_the_tests_name_the_actor():
    """Their names too; words in test data may be anything."""
    vague = re.compile(r"(?<![a-z])(who|what)ever", re.IGNORECASE)
    found = [named(p) for p in TESTS if p != Path(__file__) and vague.search(p.read_text())]
    assert found == []


def test_the_code_names_the_actor():
    found = {named(path): banned_words(path.read_text()) for path in CODE}
    assert {name: words for name, words in found.items() if words} == {}


@pytest.mark.parametrize("path", OTHERS, ids=named)
def test_the_comments_of_a_file_fit_a_screen(path):
    lines = path.read_text(errors="replace").splitlines()
    comments = [line if re.match(r"\s*#", line) or path.suffix == ".txt" else "" for line in lines]
    assert long_lines("\n".join(comments)) == []


def test_a_line_that_is_too_long_and_a_banned_word_are_found():
    assert long_lines(f"{'a ' * 55}\n{'a ' * 56}") == [f"2: {'a ' * 30}..."]
    assert long_lines(f"[1]: https://example.org/{'a' * 200}") == []
    assert banned_words("fine\nWhoever says so, has said it") == ["2: Whoever", "2: said"]
