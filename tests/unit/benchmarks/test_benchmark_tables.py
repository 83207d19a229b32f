"""The figures of the docs are those of the result files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tables

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize(
    "page",
    [
        "performance.md",
        "scaling.md",
        "reliability.md",
        "documents.md",
        "quality.md",
        "cost.md",
        "security.md",
    ],
)
def test_the_tables_of_a_page_are_what_the_results_say(page):
    text = (DOCS / page).read_text()
    assert "<!-- end -->" in text
    assert tables.renewed(text) == text, "run benchmarks/tables.py"


def test_each_table_is_on_a_page():
    pages = "".join(page.read_text() for page in DOCS.glob("*.md"))
    assert {name for name in tables.TABLES if f"<!-- {name} -->" not in pages} == set()


def test_each_figure_of_a_page_is_a_file_that_is_there():
    for page in DOCS.glob("*.md"):
        for name in re.findall(r"\]\((images/[^)]+)\)", page.read_text()):
            assert (DOCS / name).exists(), f"{page.name}: {name}"


def test_a_table_that_is_not_what_its_file_says_is_renewed(monkeypatch):
    monkeypatch.setitem(tables.TABLES, "x", lambda: "| new |\n")
    assert tables.renewed("a\n<!-- x -->\n| old |\n<!-- end -->\nb") == (
        "a\n<!-- x -->\n| new |\n<!-- end -->\nb"
    )
