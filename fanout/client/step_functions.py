"""The functions of steps: Python functions that callers give, as what a worker finds them by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fanout.core.errors import ModelError, SpecError
from fanout.llm.callables import import_path, register_callable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fanout.client.connections import Connections
    from fanout.core.steps import StepSpec

__all__ = ["check_functions", "named_steps"]


def named_steps(steps: Any, known: list[str], *, is_embedded: bool) -> Any:
    """Return steps with the names of functions in place of these.

    Args:
        steps: The steps of a job, as the caller gave them.
        known: Gets the names of those functions that only this process has.
        is_embedded: Whether the worker may be in this process.

    Raises:
        SpecError: A step has something else than a function, or one that workers could not import.
    """
    if not isinstance(steps, (list, tuple)):
        return steps
    return [_named(step, known, is_embedded=is_embedded) for step in steps]


def _named(step: Any, known: list[str], *, is_embedded: bool) -> Any:
    function = step.get("function") if isinstance(step, Mapping) else None
    if function is None or isinstance(function, str):
        return step
    field = f"steps.{step.get('name')}.function"
    if not callable(function):
        kind = type(function).__name__
        raise SpecError(
            f"must be a function, or 'package.module:function' (got {kind})", field=field
        )
    path = import_path(function)
    if path is None:
        path = _registered(function, field, is_embedded=is_embedded)
        known.append(path)
    return {**step, "function": path}


def _registered(function: Callable[[Any], Any], field: str, *, is_embedded: bool) -> str:
    """Register a function for the worker in this process, and return its name. Raises SpecError."""
    if not is_embedded:
        name = getattr(function, "__qualname__", type(function).__name__)
        raise SpecError(
            f"{name} cannot be imported by workers on other machines: move it to module level in a "
            "module that they have, and name it as 'package.module:function'",
            field=field,
        )
    return register_callable(function)


def check_functions(
    connections: Connections, steps: Iterable[StepSpec], *, check: Callable[[], None], wait: bool
) -> None:
    """Ask a worker whether it can use the functions of steps; see ``Connections.preflight``.

    Raises:
        ModelError: It cannot; the message has the step.
    """
    for step in steps:
        if step.function is None:
            continue
        try:
            connections.preflight(step.function, check=check, wait=wait)
        except ModelError as error:
            raise ModelError(f"steps.{step.name}.function: {error}", kind=error.kind) from None
