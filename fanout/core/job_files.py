"""Job files: their YAML, without validation."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml

from fanout.core.errors import SpecError
from fanout.core.field_words import binary_in, shown

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["load_job", "load_mapping"]


def load_job(path: Path) -> dict[str, Any]:
    """Return the fields of the YAML job file ``path``, without validation.

    Raises:
        SpecError: The file cannot be read, is not YAML, or is not a mapping.
    """
    return load_mapping(path, "a job file", "fields")


def load_mapping(path: Path, kind: str, of: str) -> dict[str, Any]:
    """Return the mapping in a YAML file; ``kind`` and ``of`` say what file it is, and of what.

    Raises:
        SpecError: As ``load_job``.
    """
    try:
        fields = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - it is a safe one
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read the {kind.partition(' ')[2]} {path}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or "it has a character that YAML does not allow"
        hint = "; a text that begins with { must be in quotes" if _begins_braces(mark) else ""
        raise SpecError(f"{path}{where}: not valid YAML: {reason}{hint}") from None
    except RecursionError:
        raise SpecError(f"{path}: its values are nested too deep") from None
    if not isinstance(fields, dict):
        raise SpecError(f"{path}: {kind} is a mapping of {of}, not {type(fields).__name__}")
    binary = binary_in(fields)
    if binary is not None:
        field, value = binary
        where = f"{field}: " if field else ""
        raise SpecError(f"{path}: {where}must be text, not !!binary (got {shown(value)})")
    return {str(name): value for name, value in fields.items()}


# As in YAML 1.2: YAML 1.1 wants 1.0e+6.
_EXPONENT = re.compile(r"\A[-+]?(?:\.\d+|\d+(?:\.\d*)?)[eE][-+]?\d+$", re.ASCII)


class _Loader(yaml.SafeLoader):
    """The safe YAML loader, except that a duplicate key is an error, and ``1e6`` is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - as it is called
        seen: set[object] = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name is not None and name in seen and name != "<<":
                problem = f"the field {name!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


# As in `prompt: {input} ...`, also within braces, and in an item of a list.
_BRACES = re.compile(r"(?::|\A\s*-)\s+\{\s*[\w.]*\s*\}\s*[^\s,}\]]|:\s+\{")
_SEARCHED_CHARS = 1_000


def _begins_braces(mark: Any) -> bool:
    """Say whether the value on a line of YAML begins with a brace."""
    if mark is None or mark.buffer is None:
        return False
    line = mark.buffer.splitlines()[mark.line : mark.line + 1]
    # A search of a very long line would take minutes.
    return bool(line) and _BRACES.search(line[0][:_SEARCHED_CHARS]) is not None
