"""Packages of extras: imported where a file needs them, and named if they are missing."""

from __future__ import annotations

import importlib
from typing import Any

from fanout.core.errors import InputError

__all__ = ["extra_module", "missing_extra"]


def extra_module(module: str, *, extra: str, source: str) -> Any:
    """Return a module of an extra.

    Args:
        module: Its full name.
        extra: The extra of fanout that installs it.
        source: The input that needs it, for the error.

    Raises:
        InputError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise missing_extra(module.partition(".")[0], extra=extra, source=source) from None


def missing_extra(package: str, *, extra: str, source: str | None) -> InputError:
    """Return the error of a package of an extra that is not installed."""
    reason = f"needs {package}, which is not installed: pip install 'fanout-llm[{extra}]'"
    return InputError(reason, source=source)
