"""The names of a job's fields, and their aliases.

A field of ``retries``, ``rate`` or ``budget`` may also be given at the top level: ``max_attempts: 3``
is ``retries: {max_attempts: 3}``, and ``budget_usd: 5`` is ``budget: {usd: 5}``. An option of the
command line has the field's name, with dashes. A list that is given as ``reduce`` is ``reduces``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fanout.core.errors import SpecError

__all__ = ["ALIASES", "PARTS", "canonical", "flat_name", "inner_name"]

ALIASES = {
    "llm": "model",
    "branch_prompt": "prompt",
    "aggregate": "aggregate_prompt",
    "aspect": "aspects",
    "label": "labels",
    "measure": "measures",
    "timeout": "timeout_s",
    "deadline": "deadline_s",
    "parse_timeout": "parse_timeout_s",
    "rpm": "requests_per_minute",
    "tpm": "tokens_per_minute",
}
# Fields that may be given at the top level, and the part that each belongs to.
PARTS = {
    "max_attempts": "retries",
    "max_elapsed_s": "retries",
    "base_wait_s": "retries",
    "max_wait_s": "retries",
    "requests_per_minute": "rate",
    "tokens_per_minute": "rate",
    "budget_usd": "budget",
    "budget_calls": "budget",
    "budget_tokens": "budget",
}
# Their names in the part, where these are not the same.
_INNER = {"budget_usd": "usd", "budget_calls": "calls", "budget_tokens": "tokens"}
_FLAT = {(PARTS[flat], inner): flat for flat, inner in _INNER.items()}


def inner_name(field: str) -> str:
    """Return the name that a field which may be given at the top level has in its part."""
    return _INNER.get(field, field)


def flat_name(part: str, inner: str) -> str:
    """Return the name at the top level of a field of a part."""
    return _FLAT.get((part, inner), inner)


def canonical(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields under their canonical names, those of parts such as ``retries`` in these.

    Raises:
        SpecError: A field is given twice, under two names.
    """
    top: dict[str, Any] = {}
    given_as: dict[str, str] = {}
    parts: dict[str, dict[str, Any]] = {}
    for name, value in fields.items():
        field = ALIASES.get(name, name)
        if field == "reduce" and isinstance(value, (list, tuple)):
            if not value:
                example = "{name: votes, vote: output}"
                reason = f"the list is empty; give it a reduce, such as {example}, or leave it out"
                raise SpecError(reason, field="reduce")
            field = "reduces"
        elif field == "reduce" and isinstance(value, Mapping):
            reason = "must be the name of one, or a list of reduces: put a dash (-) before each of a list"
            raise SpecError(reason, field="reduce")
        if field in PARTS:
            _note_name(given_as, field, name)
            parts.setdefault(PARTS[field], {})[inner_name(field)] = value
        elif field in PARTS.values() and isinstance(value, Mapping):
            parts.setdefault(field, {})
            for inner, one in value.items():
                inner_field = ALIASES.get(str(inner), str(inner))
                _note_name(given_as, flat_name(field, inner_field), f"{name}.{inner}")
                parts.setdefault(field, {})[inner_field] = one
        else:
            _note_name(given_as, field, name)
            top[field] = value
    return {**top, **parts}


def _note_name(given_as: dict[str, str], field: str, name: str) -> None:
    """Note the name under which a field was given. Raises SpecError if it already was."""
    if field in given_as:
        raise SpecError(f"is given twice, as {given_as[field]} and as {name}", field=field)
    given_as[field] = name
