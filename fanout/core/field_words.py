"""What is wrong with the value of a field, in plain words: of a job, and of the settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from inspect import isroutine
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic_core import ErrorDetails, ValidationError

__all__ = ["binary_in", "first_error", "shown", "twice_in", "wrong_value"]

_SHOWN_CHARS = 1_000
# What is nested deeper is refused for that.
_MOST_DEEP = 200

# By pydantic's name of the error; the names in braces are those of its context.
_WORDS = {
    "greater_than_equal": "must be {ge} or more",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be {le} or less",
    "less_than": "must be less than {lt}",
    "finite_number": "must be a finite number",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a smaller whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "string_unicode": "holds bytes that are not UTF-8 text",
    "string_too_long": "must have at most {max_length} characters",
    "path_type": "must be a path",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
}


def first_error(error: ValidationError) -> ErrorDetails:
    """Return what is wrong first; a misspelt field is why another one is missing."""
    errors = error.errors()
    first = errors[0]
    if first["type"] == "missing":
        for one in errors:
            if one["type"] == "extra_forbidden" and one["loc"][:-1] == first["loc"][:-1]:
                return one
    return first


def wrong_value(error: ErrorDetails) -> str:
    """Return what a value must be, without the name of its field."""
    context = {name: _plain(value) for name, value in error.get("ctx", {}).items()}
    words = _WORDS.get(error["type"])
    if words is not None:
        return words.format(**context)
    if error["type"] == "string_too_short":
        least = context["min_length"]
        return "must not be empty" if least == 1 else f"must have at least {least} characters"
    message = error["msg"].removeprefix("Value error, ")
    return message.replace("Input should be", "must be").replace("Input should", "must")


def _plain(value: object) -> object:
    """Return a whole number without a point."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def shown(value: object) -> str:
    """Return a value as a message has it: the beginning of a long one, and no very deep one.

    Functions and classes are named as the user wrote them: where they are in memory helps nobody.
    """
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, partial):
        return f"a partial of {shown(value.func)}"
    if isroutine(value):
        name = str(getattr(value, "__qualname__", value)).rpartition("<locals>.")[2]
        return "a lambda" if name == "<lambda>" else f"the function {name}"
    try:
        text = repr(value)
    except RecursionError:
        return f"a {type(value).__name__} that is nested too deep"
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."


def binary_in(fields: Mapping[str, object]) -> tuple[str, object] | None:
    """Return the first value or name in some fields that is bytes, and its field; None if there is none.

    Pydantic would take them as text.
    """
    seen = set[int]()
    rest: list[tuple[str, object, int]] = [("", fields, 0)]
    while rest:
        path, value, depth = rest.pop()
        if isinstance(value, (bytes, bytearray)):
            return path, value
        if not isinstance(value, (Mapping, list, tuple, set)):
            continue
        if id(value) in seen or depth > _MOST_DEEP:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            named = ((f"{path}.{name}" if path else str(name), one) for name, one in value.items())
            rest += [(name, one, depth + 1) for name, one in named]
            rest += [(path, name, depth + 1) for name in value]
        else:
            rest += [(path, one, depth + 1) for one in value]
    return None


def twice_in(values: Iterable[object]) -> str | None:
    """Return the first text that is there twice, or None; what is no text does not count."""
    counts = Counter(one for one in values if isinstance(one, str))
    return next((one for one, count in counts.items() if count > 1), None)
