"""The fields of a job that say what answers must be: their forms, and how these become JSON Schemas."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Mapping
from datetime import date
from functools import partial
from inspect import isroutine
from pathlib import Path
from typing import Annotated, Any

import msgspec
from pydantic import BaseModel, BeforeValidator
from pydantic.errors import PydanticUserError

from fanout.core.answer_shape import checked_schema
from fanout.core.errors import SpecError
from fanout.core.field_words import shown, twice_in
from fanout.core.python_types import adapter_of

__all__ = ["Choices", "Schema", "SchemaField", "is_type", "type_schema"]

_FORMS = "a JSON Schema, the path of a file with one, or in Python a type"
# PydanticSchemaGenerationError is a PydanticUserError; a name may be unknown.
_NO_SCHEMA = (PydanticUserError, NameError, TypeError, ValueError, RecursionError)


def is_type(value: object) -> bool:
    """Say whether a schema is given as a type of Python, such as a pydantic model or ``list[int]``."""
    return value is not None and not isinstance(value, (str, Mapping, Path))


def type_schema(kind: Any, *, field: str) -> dict[str, Any]:
    """Return the JSON Schema of a type.

    Args:
        kind: A pydantic model, dataclass, TypedDict, ``Literal``, ``list[...]`` and the like.
        field: The job's field, for messages.

    Raises:
        SpecError: It has no JSON Schema.
    """
    if isroutine(kind) or isinstance(kind, partial):
        # pydantic takes a function for its arguments.
        raise SpecError(f"must be {_FORMS} (got {shown(kind)})", field=field)
    try:
        return adapter_of(kind).json_schema()
    except _NO_SCHEMA as error:
        reason = str(error).splitlines()[0]
        raise SpecError(f"must be {_FORMS} (got {shown(kind)}): {reason}", field=field) from None


def _schema(value: object) -> object:
    """Return a JSON Schema as a dict, however it is given."""
    if value is None:
        return None
    try:
        return checked_schema(_as_mapping(value), field="")
    except SpecError as error:
        raise ValueError(error.reason) from None


def _as_mapping(value: object) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    if isinstance(value, (bool, int, float, list, tuple)):
        raise SpecError(f"must be {_FORMS}")
    if not isinstance(value, (str, Path)):
        return type_schema(value, field="")
    text = str(value)
    if not text.lstrip().startswith("{"):
        try:
            text = Path(value).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise SpecError(f"must be {_FORMS}; the file cannot be read: {reason}") from None
    try:
        made = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise SpecError(f"is not JSON: {error}") from None
    except RecursionError:
        raise SpecError("is not a JSON Schema: nested too deep") from None
    if not isinstance(made, dict):
        raise SpecError("must be a JSON Schema: an object")
    return made


def _choices(value: object) -> object:
    """Return labels as a tuple; a text has them between commas or line breaks."""
    if isinstance(value, str):
        value = _listed(value)
    if not isinstance(value, (list, tuple)):
        return value
    labels = tuple(_label(one) for one in value)
    twice = twice_in(labels)
    if twice is not None:
        msg = f"has {twice!r} twice (blanks at the ends do not count)"
        raise ValueError(msg)
    if labels and (len(labels) < 2 or "" in labels):  # noqa: PLR2004 - two are a choice
        msg = "must be two labels or more, none of them empty"
        raise ValueError(msg)
    return labels


def _listed(text: str) -> list[str]:
    """Return the labels of a text; one that has a comma is in double quotes."""
    lines = [line for line in text.splitlines() if line.strip()]
    rows = csv.reader(lines, skipinitialspace=True, strict=False)
    return [cell for row in rows for cell in row]


def _label(one: object) -> object:
    if isinstance(one, bool) or one is None or isinstance(one, (float, date)):
        msg = (
            f"must be texts, and {one!r} is none: put each label in quotes, as YAML reads yes, no, "
            "on, off, null, 1.50 and 2026-01-31 as other values"
        )
        raise ValueError(msg)
    label = str(one).strip() if isinstance(one, (str, int)) else one
    if isinstance(label, str) and not label.isprintable():
        msg = f"must be one line each, without control characters, which {label!r} has"
        raise ValueError(msg)
    return label


Schema = Annotated[dict[str, Any] | None, BeforeValidator(_schema)]
Choices = Annotated[tuple[str, ...], BeforeValidator(_choices)]


with warnings.catch_warnings():
    # BaseModel has a deprecated method of this name.
    warnings.filterwarnings("ignore", 'Field name "schema"', UserWarning)

    class SchemaField(BaseModel):
        """The field ``schema`` of a job."""

        schema: Schema = None  # type: ignore[assignment]
