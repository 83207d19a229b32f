"""docs/celery-internals.md names every internal of Celery and the like that the code leans on."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import sys
from functools import cache
from pathlib import Path

import fanout
import workers

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "celery-internals.md").read_text()
FOREIGN = {"celery", "kombu", "billiard", "flower", "redis", "concurrent"}
# Made to be derived from, and documented so.
DOCUMENTED = {"celery.bootsteps", "celery.utils.log"}
# What Python itself puts into a class.
PYTHONS = ("__", "_abc_impl", "_is_protocol")
# Modules that do their work when they are imported.
PROGRAMS = {"local_server", "guard", "__main__"}
OURS = {"fanout", "workers"}
SOURCES = [path for one in sorted(OURS) for path in (ROOT / one).rglob("*.py")]


def package(cls):
    return cls.__module__.partition(".")[0]


@cache
def classes_at_top(module):
    """The sources of a module's classes, by their names: ``inspect`` parses it again for each."""
    source = inspect.getsource(sys.modules[module])
    lines = source.splitlines(keepends=True)
    return {
        node.name: "".join(lines[node.lineno - 1 : node.end_lineno])
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef)
    }


@cache
def source_of(cls):
    return classes_at_top(cls.__module__).get(cls.__qualname__) or inspect.getsource(cls)


@cache
def classes():
    """Our classes that derive from foreign ones, each with these."""
    found_classes = []
    for root in (fanout, workers):
        for found in pkgutil.walk_packages(root.__path__, f"{root.__name__}."):
            if found.name.rpartition(".")[2] in PROGRAMS:
                continue
            module = importlib.import_module(found.name)
            for cls in vars(module).values():
                if inspect.isclass(cls) and cls.__module__ == module.__name__:
                    bases = [base for base in cls.__mro__ if package(base) in FOREIGN]
                    bases = [base for base in bases if base.__module__ not in DOCUMENTED]
                    found_classes.append((cls, bases))
    return found_classes


@cache
def overridden():
    """What our classes have in place of a foreign one's, as ``Channel._put``."""
    found = set()
    for cls, bases in classes():
        for base in bases:
            own = (each for each in cls.__mro__ if package(each) in OURS)
            names = {name for each in own for name in vars(each) if not name.startswith(PYTHONS)}
            found |= {f"{base.__qualname__}.{name}" for name in names & vars(base).keys()}
    return found


@cache
def read_of_themselves():
    """The private attributes of a foreign base that our classes read or set on themselves."""
    found = set()
    for cls, bases in classes():
        if not bases:
            continue
        used = set(re.findall(r"\bself\.(_[a-z]\w*)", source_of(cls)))
        for base in bases:
            known = set(re.findall(r"\b(?:self\.|def )(_[a-z]\w*)", source_of(base)))
            found |= {f"{base.__qualname__}.{name}" for name in used & known}
    return found


@cache
def read_of_others():
    """The private attributes that our modules read of objects that are not theirs."""
    found = set()
    for path in SOURCES:
        source = path.read_text()
        if not FOREIGN & set(re.findall(r"(?:from|import) (\w+)", source)):
            continue
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.Attribute) or not re.match(r"_[a-z]", node.attr):
                continue
            if ast.unparse(node.value) not in {"self", "cls", "os", "super()"}:
                found.add(node.attr)
    return found


def test_there_is_something_to_name():
    assert {"Channel._put", "Request.on_failure", "RedisBackend._get_client"} <= overridden()
    assert "_brpop_sent_at" in read_of_others()
    assert "Request._eta" in read_of_themselves()


def test_each_override_is_on_the_page():
    named = set(re.findall(r"`(\w+\.\w+)`", PAGE))
    short = {name.partition(".")[2] for name in named}
    missing = {name for name in overridden() - named if name.partition(".")[2] not in short}
    assert missing == set()


def test_each_private_attribute_is_on_the_page():
    named = set(re.findall(r"[`.](_[a-z]\w*)", PAGE))
    own = {name.partition(".")[2] for name in overridden()}
    missing = {name.partition(".")[2] for name in read_of_themselves()} | read_of_others()
    assert missing - named - own == set()


def test_what_the_page_names_is_what_the_code_uses():
    """An entry for what is not used any more is one to read in vain."""
    words = {word for path in SOURCES for word in re.findall(r"\w+", path.read_text())}
    named = {name.rpartition(".")[2] for name in re.findall(r"`([A-Z]\w+\.\w+)`", PAGE)}
    assert named - words == set()


def test_each_entry_has_a_contract_test_that_is_there():
    entries = re.findall(r"^\* .*?(?=^\* |^#|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for entry in entries:
        held = re.findall(r"`(test_\w+)`", entry)
        assert held, entry
        assert [name for name in held if f"def {name}(" not in tests] == []
