"""What a page links to or names is there: pages, headings, files, modules and tests."""

from __future__ import annotations

import importlib
import pkgutil
import re

import pytest

import fanout
import workers

from .test_docs_language import PAGES, ROOT, named

ROOMS = {
    f"{package.__name__}.{room.name}"
    for package in (fanout, workers)
    for room in pkgutil.iter_modules(package.__path__)
}
FOLDERS = "fanout|workers|tests|benchmarks|ops|docs|examples"


def without_code(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text):
    """The names by which GitHub links to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", without_code(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text())):
        name, _, anchor = target.partition("#")
        if "://" in name:
            continue
        page = path.parent / name if name else path
        if not page.exists() or (anchor and anchor not in anchors(page.read_text())):
            yield target


def resolves(name):
    """Whether a dotted name is a module, or something in one."""
    parts = name.split(".")
    for size in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:size]))
        except ImportError:
            continue
        for part in parts[size:]:
            found = getattr(found, part, None)
        return found is not None
    return False


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_each_link_of_a_page_leads_somewhere(path):
    assert list(broken_links(path)) == []


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_each_file_that_a_page_names_is_there(path):
    found = re.findall(rf"`((?:{FOLDERS})/[\w./-]+\.\w+)`", without_code(path.read_text()))
    patches = "".join(patch.read_text() for patch in (ROOT / "docs" / "recipes").glob("*.diff"))
    added = set(re.findall(r"^--- /dev/null\n\+\+\+ b/(.*)$", patches, re.MULTILINE))
    assert [name for name in found if not (ROOT / name).exists() and name not in added] == []


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_each_module_that_a_page_names_is_there(path):
    found = re.findall(r"`((?:fanout|workers)(?:\.\w+)+)`", path.read_text())
    in_rooms = [name for name in found if ".".join(name.split(".")[:2]) in ROOMS]
    assert [name for name in in_rooms if not resolves(name)] == []


@pytest.mark.parametrize("folder", ["docs", "docs/decisions"])
def test_each_page_is_in_the_index_of_its_folder(folder):
    index = (ROOT / folder / "README.md").read_text()
    pages = {path.name for path in (ROOT / folder).glob("*.md")} - {"README.md"}
    assert {name for name in pages if f"]({name})" not in index} == set()


def test_what_is_not_there_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b`, c\n\n[x](#a-b-c) [y](gone.md) [z](#gone) [w](https://example.org/#a)\n"
    )
    assert list(broken_links(page)) == ["gone.md", "#gone"]
    assert resolves("fanout.core.spec.RunSpec")
    assert not resolves("fanout.core.gone")
