"""The names of a job's fields: one for each, everywhere, and others that mean the same.

A field of ``retries`` or ``rate`` may stand by itself as well: ``max_attempts: 3`` is
``retries: {max_attempts: 3}``. An option of the command line has a field's name, with dashes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fanout.core.errors import SpecError

__all__ = ["ALIASES", "PARTS", "canonical"]

ALIASES = {
    "llm": "model",
    "branch_prompt": "prompt",
    "aggregate": "aggregate_prompt",
    "aspect": "aspects",
    "timeout": "timeout_s",
    "deadline": "deadline_s",
    "rpm": "requests_per_minute",
    "tpm": "tokens_per_minute",
}
# What may stand by itself, and what it is a part of.
PARTS = {
    "max_attempts": "retries",
    "max_elapsed_s": "retries",
    "base_wait_s": "retries",
    "max_wait_s": "retries",
    "requests_per_minute": "rate",
    "tokens_per_minute": "rate",
}


def canonical(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields under their own names, those of ``retries`` and ``rate`` in their parts.

    Raises:
        SpecError: A field is given twice, under two names.
    """
    made: dict[str, Any] = {}
    said: dict[str, str] = {}
    parts: dict[str, dict[str, Any]] = {}
    for name, value in fields.items():
        field = ALIASES.get(name, name)
        if field in PARTS:
            _once(said, field, name)
            parts.setdefault(PARTS[field], {})[field] = value
        elif field in PARTS.values() and isinstance(value, Mapping):
            for inner, one in value.items():
                own = ALIASES.get(str(inner), str(inner))
                _once(said, own, f"{name}.{inner}")
                parts.setdefault(field, {})[own] = one
        else:
            _once(said, field, name)
            made[field] = value
    return {**made, **parts}


def _once(said: dict[str, str], field: str, name: str) -> None:
    if field in said:
        raise SpecError(f"is given twice, as {said[field]} and as {name}", field=field)
    said[field] = name
