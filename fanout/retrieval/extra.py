"""The packages of the extra ``retrieval``, which are imported where passages are indexed or searched."""

from __future__ import annotations

from typing import Any

from fanout.core.errors import ModelError, SpecError

__all__ = ["bm25_module", "numpy_module", "require_extra"]

_MISSING = "retrieve needs {}, which is not installed: pip install 'fanout-llm[retrieval]'"


def numpy_module() -> Any:
    """Return numpy. Raises ModelError if it is not installed."""
    try:
        import numpy as np
    except ImportError:
        raise ModelError(_MISSING.format("numpy")) from None
    return np


def bm25_module() -> Any:
    """Return bm25s. Raises ModelError if it is not installed."""
    try:
        import bm25s
    except ImportError:
        raise ModelError(_MISSING.format("bm25s")) from None
    return bm25s


def require_extra() -> None:
    """Make sure that passages can be indexed here. Raises SpecError."""
    try:
        bm25_module()
    except ModelError as error:
        raise SpecError(str(error).removeprefix("retrieve "), field="retrieve") from None
