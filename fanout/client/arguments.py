"""Checks what callers pass to ``Client`` and ``ParallelCalls``."""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, SupportsIndex, cast

from fanout.core.errors import SettingsError, SpecError
from fanout.core.field_effects import require_used
from fanout.core.spec import RunSpec, make_spec
from fanout.llm.callables import import_path, register_callable, takes_prompt_only
from fanout.system.open_files import open_files_problem

__all__ = [
    "checked_count",
    "checked_spec",
    "model_string",
    "model_strings",
    "paths",
    "require_open_files",
]


def checked_count(name: str, value: object) -> int | None:
    """Return the count that a caller gives, or None. Raises SpecError unless it is 1 or more."""
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        # As in a spec.
        value = int(value)
    # numpy's integers are allowed, True is not.
    is_whole = hasattr(value, "__index__") and not isinstance(value, bool)
    count = operator.index(cast("SupportsIndex", value)) if is_whole else 0
    if count < 1:
        raise SpecError(f"must be a whole number from 1 on (got {value!r})", field=name)
    return count


def checked_spec(given: Any, *, has_documents: bool) -> RunSpec:
    """Return the spec of a new run, from a spec or its fields, with an absolute ``base_dir``.

    Raises:
        SpecError: A field is wrong or has no effect, the prompt of a reduce has no room, or there are both
            documents and files.
    """
    if not isinstance(given, RunSpec | Mapping):
        kind = type(given).__name__
        raise SpecError(
            f"must be a RunSpec, or a dict of its fields such as model and prompt (got {kind})",
            field="spec",
        )
    spec = given if isinstance(given, RunSpec) else make_spec(**given)
    require_used(spec, is_function=any(map(takes_prompt_only, spec.all_models)))
    if spec.reduces_by_calls:
        from fanout.runs.token_counts import require_reduce_room

        require_reduce_room(spec)
    if spec.budget.is_limited:
        from fanout.runs.budgets import require_kept, require_room

        require_kept(spec, spec.budget.limits)
        require_room(spec, spec.budget.limits)
    if has_documents:
        if spec.inputs:
            raise SpecError("give either chunks or inputs, and not both", field="inputs")
        return spec
    absolute = spec.model_copy(update={"base_dir": str(Path(spec.base_dir or "").absolute())})
    if "base_dir" not in spec.model_fields_set:
        # The user did not set it, so it need not have an effect.
        absolute.model_fields_set.discard("base_dir")
    return absolute


def require_open_files(concurrency: int, given: int | None, max_workers: int | None) -> None:
    """Make sure that an embedded worker may have its open files, before it is started.

    Args:
        concurrency: Branches in flight of the worker.
        given: The same, if the caller of the client chose it.
        max_workers: The ``max_workers`` of the run.

    Raises:
        SpecError: The argument needs more open files than the hard limit allows.
        SettingsError: ``FANOUT_CONCURRENCY`` does.
    """
    problem = open_files_problem(concurrency, setting="it")
    if problem is None:
        return
    if given is None:
        raise SettingsError(f"FANOUT_CONCURRENCY: {problem}")
    raise SpecError(problem, field="max_workers" if given == max_workers else "concurrency")


def paths(inputs: Any) -> tuple[str, ...]:
    """Return the paths of one or several inputs. Raises SpecError."""
    given = (inputs,) if isinstance(inputs, (str, PathLike)) else tuple(inputs)
    for one in given:
        if not isinstance(one, (str, PathLike)):
            kind = type(one).__name__
            raise SpecError(f"must be paths (got {one!r}, a {kind})", field="inputs")
    return tuple(os.fspath(one) for one in given)


def model_strings(llm: Any, *, is_embedded: bool) -> tuple[str, ...]:
    """Return the strings of one or several models, as ``model_string`` does.

    Raises:
        SpecError: There is none, one is no model, or workers could not import it.
    """
    given = tuple(llm) if isinstance(llm, (list, tuple)) else (llm,)
    if not given:
        raise SpecError("must not be empty: give a model, or several", field="llm")
    return tuple(model_string(one, is_embedded=is_embedded) for one in given)


def model_string(llm: Any, *, is_embedded: bool) -> str:
    """Return the string of a model; register a function or an object for the worker in this process.

    Raises:
        SpecError: It is no model, or workers on other machines could not import it.
    """
    if llm is None:
        raise SpecError("is required: give llm=..., or set FANOUT_MODEL", field="llm")
    if isinstance(llm, str):
        if not llm.strip():
            raise SpecError("must not be empty: give a model, such as 'fake'", field="llm")
        return llm
    if not callable(llm) and not callable(getattr(llm, "complete", None)):
        kind = type(llm).__name__
        raise SpecError(
            "must be a model string such as 'openai/gpt-5-mini', a function str -> str, or an "
            f"object with an async complete(request) (got {kind})",
            field="llm",
        )
    if is_embedded:
        return register_callable(llm)
    path = import_path(llm)
    if path is None:
        name = getattr(llm, "__qualname__", type(llm).__name__)
        raise SpecError(
            f"{name} cannot be imported by workers on other machines: move it to module level in "
            "a module that they have, and name it as 'package.module:function'",
            field="llm",
        )
    return path
