"""How large the code is and how its rooms hang together: run in two checkouts to compare them.

    python benchmarks/structure.py [CHECKOUT]

A room is a folder of ``fanout`` or ``workers``; an arrow is a pair of rooms of which one imports the
other, for types as well. A floor is the longest way down from a room; rooms that import one another in
a circle share one.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from statistics import median
from typing import NamedTuple

PACKAGES = ("fanout", "workers")
LONGEST_LINE = 110
WORDS = ("whoever", "whatever", "said", "borne")


class Module(NamedTuple):
    """A module: its dotted name, its folder, its lines, and the modules that it imports."""

    name: str
    room: str
    lines: int
    functions: tuple[int, ...]
    imports: frozenset[str]


def modules(root: Path) -> list[Module]:
    """Return the modules of the packages in a checkout."""
    paths = {
        _dotted(path.relative_to(root)): path
        for package in PACKAGES
        for path in sorted((root / package).rglob("*.py"))
    }
    return [_module(name, path, root, paths) for name, path in paths.items()]


def _dotted(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def _module(name: str, path: Path, root: Path, known: dict[str, Path]) -> Module:
    text = path.read_text()
    tree = ast.parse(text)
    lengths = tuple(
        (node.end_lineno or node.lineno) - node.lineno + 1
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    room = ".".join(path.relative_to(root).parent.parts[:2])
    imports = frozenset(one for node in ast.walk(tree) for one in _imported(node, known))
    return Module(name, room, len(text.splitlines()), lengths, imports - {name})


def _imported(node: ast.AST, known: dict[str, Path]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names if alias.name in known]
    if isinstance(node, ast.ImportFrom) and node.module:
        full = [f"{node.module}.{alias.name}" for alias in node.names]
        return [one if one in known else node.module for one in full if node.module in known]
    return []


def arrows(found: list[Module]) -> dict[str, set[str]]:
    """Return which rooms each room imports from."""
    rooms = {module.name: module.room for module in found}
    needs: dict[str, set[str]] = {room: set() for room in rooms.values()}
    for module in found:
        needs[module.room] |= {rooms[name] for name in module.imports} - {module.room}
    return needs


def circles(needs: dict[str, set[str]]) -> list[set[str]]:
    """Return the sets of rooms that import one another, however indirectly."""
    below = {room: _below(room, needs) for room in needs}
    together = {
        frozenset({room} | {other for other in below[room] if room in below[other]})
        for room in needs
    }
    return [set(rooms) for rooms in together if len(rooms) > 1]


def _below(room: str, needs: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    todo = [room]
    while todo:
        new = needs[todo.pop()] - seen
        seen |= new
        todo += new
    return seen


def floors(needs: dict[str, set[str]]) -> int | None:
    """Return on how many floors the rooms are; None where some import one another in a circle."""
    height: dict[str, int] = defaultdict(int)
    try:
        for room in TopologicalSorter(needs).static_order():
            height[room] = 1 + max((height[other] for other in needs[room]), default=0)
    except CycleError:
        return None
    return max(height.values())


def prose(root: Path) -> dict[str, int]:
    """Count the lines of documentation that are too long, and words that should not be there."""
    pages = [*sorted(root.glob("*.md")), *sorted((root / "docs").rglob("*.md"))]
    code = [path for package in PACKAGES for path in (root / package).rglob("*.py")]
    lines = [line for page in pages for line in page.read_text().splitlines()]
    texts = [path.read_text() for path in [*pages, *code]]
    pattern = re.compile(rf"\b({'|'.join(WORDS)})\b", re.IGNORECASE)
    return {
        f"lines of docs over {LONGEST_LINE}": sum(len(line) > LONGEST_LINE for line in lines),
        f"words {', '.join(WORDS)}": sum(len(pattern.findall(text)) for text in texts),
    }


def main() -> None:
    """Print the figures of a checkout."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkout", nargs="?", type=Path, default=Path())
    root: Path = parser.parse_args().checkout
    found = modules(root)
    needs = arrows(found)
    functions = [length for module in found for length in module.functions]
    at_top = sum(module.name.count(".") == 1 and module.room == "fanout" for module in found)
    figures: dict[str, object] = {
        "modules at the top of fanout": at_top,
        "rooms": len(needs),
        "arrows": sum(map(len, needs.values())),
        "floors": floors(needs) or "-",
        "rooms in circles": sum(map(len, circles(needs))),
        "lines": sum(module.lines for module in found),
        "modules": len(found),
        "longest module": max(module.lines for module in found),
        "median module": median(module.lines for module in found),
        "longest function": max(functions),
        "median function": median(functions),
        **prose(root),
    }
    for name, figure in figures.items():
        print(f"{name:40} {figure}")


if __name__ == "__main__":
    main()
