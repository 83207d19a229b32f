"""The references within a JSON Schema, and what they make of its size."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping

__all__ = [
    "MOST_LEVELS",
    "MOST_WAYS",
    "alternatives",
    "empty_circle",
    "is_recursive",
    "levels",
    "referred",
    "resolved",
    "ways",
]

# The validator recurses over the levels, and reads one value in each of the ways.
MOST_LEVELS = 3_000
MOST_WAYS = 10_000
_ROOT = "#"
# The keywords that hold further schemas of the same value.
_LISTS = ("anyOf", "oneOf", "allOf")
_SINGLE = ("not", "if", "then", "else")
_NAMED = ("dependentSchemas", "dependencies")
# What these hold are values, and no schemas.
_VALUES = frozenset({"const", "default", "enum", "example", "examples"})


def resolved(schema: Any, root: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a schema refers to within its document; an empty one if that is nothing."""
    seen = set[str]()
    while isinstance(schema, dict) and isinstance(schema.get("$ref"), str):
        reference = schema["$ref"]
        if reference in seen:
            return {}
        seen.add(reference)
        schema = referred(root, reference)
    return schema if isinstance(schema, dict) else {}


def referred(root: Any, reference: str) -> Any:
    """Return the part of a document at a reference such as ``#/$defs/Tag``; None if there is none."""
    start, _, pointer = reference.partition("#")
    if start or (pointer and not pointer.startswith("/")):
        return None
    found = root
    for part in pointer.split("/")[1:]:
        name = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        elif isinstance(found, dict):
            found = found.get(name)
        else:
            return None
    return found


def alternatives(schema: Mapping[str, Any]) -> list[Any]:
    """Return the parts of ``anyOf``, ``oneOf`` and ``allOf`` of a schema."""
    return [one for keyword in _LISTS for one in schema.get(keyword, ())]


def ways(root: Mapping[str, Any]) -> int:
    """Return in how many ways a schema reads one value: by each path of references and alternatives.

    A reference that leads back to where it began counts once.
    """
    known: dict[int, int] = {}
    for part in _parts(root):
        waiting, begun = [part], set[int]()
        while waiting:
            one = waiting[-1]
            below = list(_of_same_value(one, root))
            left = [each for each in below if id(each) not in known and id(each) not in begun]
            begun.add(id(one))
            if left:
                waiting.append(left[0])
                continue
            # Bounded, as each further level could double it.
            total = sum(known.get(id(each), 1) for each in below)
            known[id(one)] = min(MOST_WAYS + 1, max(1, total))
            waiting.pop()
    return max(known.values(), default=1)


def empty_circle(root: Mapping[str, Any]) -> str | None:
    """Return a reference of a schema that leads back to itself without a step into the answer.

    Such a circle says nothing of any answer, and what a validator makes of it is not defined. None if there
    is none.
    """
    done: set[int] = set()
    for part in _parts(root, leaves_out=_VALUES):
        # The schemas on the way to the present one, each with what is still to be looked at of it.
        path = {} if id(part) in done else {id(part): (part, _of_same_value(part, root))}
        while path:
            last, (_, below) = next(reversed(path.items()))
            following = next((each for each in below if id(each) not in done), None)
            if following is None:
                done.add(last)
                del path[last]
            elif id(following) in path:
                circle = list(path.values())[list(path).index(id(following)) :]
                return next(
                    str(one["$ref"]) for one, _ in circle if isinstance(one.get("$ref"), str)
                )
            else:
                path[id(following)] = (following, _of_same_value(following, root))
    return None


def _parts(schema: Any, *, leaves_out: Container[str] = ()) -> Iterator[dict[str, Any]]:
    waiting = [schema]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield one
            waiting.extend(value for name, value in one.items() if name not in leaves_out)
        elif isinstance(one, list):
            waiting.extend(one)


def _of_same_value(schema: dict[str, Any], root: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    listed = (schema.get(name) for name in _LISTS)
    named = (schema.get(name) for name in _NAMED)
    parts = chain(
        chain.from_iterable(one for one in listed if isinstance(one, list)),
        chain.from_iterable(one.values() for one in named if isinstance(one, dict)),
        (schema.get(name) for name in _SINGLE),
    )
    yield from (one for one in parts if isinstance(one, dict))
    reference = schema.get("$ref")
    target = referred(root, reference) if isinstance(reference, str) else None
    if isinstance(target, dict):
        yield target


def levels(root: Mapping[str, Any]) -> int:
    """Return how deep a schema is at most, each reference replaced by its target once.

    Targets that refer to each other in a circle count with all of their levels.
    """
    depths, below = _targets(root)
    down = _peeled(below, depths)
    circles = below.keys() - down.keys()
    above: dict[str, set[str]] = {name: set() for name in circles}
    for name in circles:
        for each in below[name] & circles:
            above[each].add(name)
    up = _peeled(above, depths)
    within = sum(depths[name] for name in circles if name not in up)
    return max(up.values(), default=0) + within + max(down.values(), default=0)


def is_recursive(root: Mapping[str, Any]) -> bool:
    """Say whether a schema refers to itself."""
    depths, below = _targets(root)
    return len(_peeled(below, depths)) < len(below)


def _targets(root: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, set[str]]]:
    """Return the levels of the document and of each target of a reference, and what each refers to."""
    depths: dict[str, int] = {}
    below: dict[str, set[str]] = {}
    waiting = [_ROOT]
    while waiting:
        name = waiting.pop()
        if name not in depths:
            depths[name], below[name] = _depth_and_references(referred(root, name))
            waiting.extend(below[name])
    return depths, below


def _depth_and_references(part: Any) -> tuple[int, set[str]]:
    depth, found = 0, set[str]()
    level = [part]
    while level:
        depth += 1
        for one in level:
            own = one.get("$ref") if isinstance(one, dict) else None
            if isinstance(own, str):
                found.add(own)
        level = [
            each
            for one in level
            if isinstance(one, (dict, list))
            for each in (one.values() if isinstance(one, dict) else one)
        ]
    return depth, found


def _peeled(below: Mapping[str, set[str]], depths: Mapping[str, int]) -> dict[str, int]:
    """Return the depth of what leads into no circle: the longest way down, in levels."""
    above: dict[str, list[str]] = {name: [] for name in below}
    for name, found in below.items():
        for each in found:
            above[each].append(name)
    open_ = {name: len(found) for name, found in below.items()}
    ready = [name for name, count in open_.items() if not count]
    done: dict[str, int] = {}
    while ready:
        name = ready.pop()
        done[name] = depths[name] + max((done[each] for each in below[name]), default=0)
        for each in above[name]:
            open_[each] -= 1
            if not open_[each]:
                ready.append(each)
    return done
