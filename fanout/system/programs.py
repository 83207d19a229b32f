"""Lookup of the programs that import this package: the worker, its Celery application, Flower.

This package must not import them. The distribution lists them as entry points of the group
``fanout.programs``.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from fanout.core.errors import FanoutError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["load_program", "program_command", "worker_command"]

_DISTRIBUTION = "fanout-llm"
_GROUP = "fanout.programs"


def worker_command(*options: str) -> list[str]:
    """Return the command that starts a worker; the caller may append Celery's options.

    Args:
        options: The program's own options, which precede Celery's command line.

    Raises:
        FanoutError: The installation has no worker.
    """
    return [*program_command("worker"), *options, "-A", _program("celery_app").module, "worker"]


def load_program(name: str) -> Any:
    """Import the object of an entry point. Raises FanoutError if it cannot be imported."""
    program = _program(name)
    try:
        return program.load()
    except (ImportError, AttributeError) as error:
        raise _incomplete(f"{program.value} cannot be imported: {error}") from error


def program_command(name: str) -> list[str]:
    """Return the command that starts a program. Raises FanoutError if it is not installed."""
    return [sys.executable, "-m", _program(name).module.removesuffix(".__main__")]


def _program(name: str) -> EntryPoint:
    # Not at the top: the import costs 10 ms, also in processes that start no program.
    from importlib import metadata

    try:
        # A search through all distributions takes many times as long.
        programs = metadata.distribution(_DISTRIBUTION).entry_points
    except metadata.PackageNotFoundError:
        raise _incomplete("it is not installed") from None
    for program in programs.select(group=_GROUP, name=name):
        return program
    raise _incomplete(f"it has no entry point {name!r} in the group {_GROUP}")


def _incomplete(problem: str) -> FanoutError:
    return FanoutError(f"the package {_DISTRIBUTION} is incomplete, {problem}: install it again")
