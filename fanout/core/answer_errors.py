"""What is wrong with an answer that is not valid against its schema, in words, at a bounded cost."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import jsonschema_rs
import msgspec

from fanout.core.schema_references import is_recursive

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["AnswerErrors", "cut"]

# Characters of an invalid value that a message quotes.
_SHOWN_CHARS = 100
# Errors of one answer that a message names.
_SHOWN_ERRORS = 3
# Of a longer answer only the first error is looked for: all of a megabyte take many seconds.
_ALL_ERRORS_CHARS = 20_000
_UNIONS = ("anyOf", "oneOf")
_MARK = "fanout: "
_MARKS = {
    f"{_MARK}anyOf": "any of the schemas listed in the 'anyOf' keyword",
    f"{_MARK}oneOf": "exactly one of the schemas listed in the 'oneOf' keyword",
    f"{_MARK}allOf": "all of the schemas listed in the 'allOf' keyword",
}
# Drafts without if and else.
_OLD_DRAFTS = ("draft-04", "draft-06")
_UNKNOWN = "the answer is not valid against the schema"


class AnswerErrors:
    """Describes what is wrong with answers.

    The validator tells quickly whether an answer is valid. To say why not, it looks for the errors
    below each alternative, twice as many at each level of a schema that refers to itself. So it is
    given a schema that is as strict, and whose alternatives are conditions: these it only decides.

    Args:
        schema: A JSON Schema.
        validator: Makes the validator of a schema.
    """

    def __init__(self, schema: dict[str, Any], validator: Callable[[dict[str, Any]], Any]) -> None:
        self._schema = schema
        self._new_validator = validator

    @cached_property
    def _validator(self) -> Any:
        made = _Conditions(self._schema).of(self._schema)
        try:
            return self._new_validator(made)
        except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError):
            # A reference into an alternative, which now has another place.
            return None

    def of(self, value: Any, chars: int) -> str:
        """Return what is wrong with an invalid value of an answer of so many characters."""
        if self._validator is None:
            return _UNKNOWN
        return _described(self._found(value, chars)) or _UNKNOWN

    def _found(self, value: Any, chars: int) -> Sequence[Any]:
        if chars <= _ALL_ERRORS_CHARS:
            return list(self._validator.iter_errors(value))
        try:
            self._validator.validate(value)
        except jsonschema_rs.ValidationError as error:
            return [error]
        return []


class _Conditions:
    """Puts each alternative of a schema into a condition, which the validator only decides."""

    def __init__(self, root: dict[str, Any]) -> None:
        draft = str(root.get("$schema", ""))
        self._is_old = any(one in draft for one in _OLD_DRAFTS)
        self._is_recursive = is_recursive(root)

    def of(self, part: Any) -> Any:
        if isinstance(part, list):
            return [self.of(one) for one in part]
        if not isinstance(part, dict):
            return part
        made = {
            name: value if name in ("enum", "const", "default", "examples") else self.of(value)
            for name, value in part.items()
        }
        for keyword in _UNIONS:
            if isinstance(made.get(keyword), list):
                self._put(made, keyword)
        if self._is_recursive and _is_list_of_several(part.get("allOf")):
            self._put(made, "allOf")
        return made

    def _put(self, made: dict[str, Any], keyword: str) -> None:
        condition, mark = {keyword: made.pop(keyword)}, f"{_MARK}{keyword}"
        strict: dict[str, Any] = {"if": condition, "else": {"not": {"$comment": mark}}}
        if self._is_old:
            strict = {"not": {"$comment": mark, "not": condition}}
        made["allOf"] = [*made.get("allOf", ()), strict]


def _is_list_of_several(parts: Any) -> bool:
    return isinstance(parts, list) and len(parts) > 1


def _described(errors: Sequence[Any]) -> str:
    shown = [_one_described(error) for error in errors[:_SHOWN_ERRORS]]
    more = len(errors) - len(shown)
    return "; ".join(shown) + (f"; and {more:,} more" if more else "")


def _one_described(error: Any) -> str:
    where = cut("".join(f"/{part}" for part in error.instance_path)) or "the answer"
    message = _of_union(error) or str(error.message)
    return f"{where}: {message if len(message) <= 3 * _SHOWN_CHARS else cut(message)}"


def _of_union(error: Any) -> str | None:
    """Return the message of a condition that stands for alternatives; None of any other error."""
    marked = getattr(error.kind, "schema", None)
    comment = marked.get("$comment") if isinstance(marked, dict) else None
    if comment not in _MARKS:
        return None
    value = cut(msgspec.json.encode(error.instance).decode())
    return f"{value} is not valid under {_MARKS[comment]}"


def cut(text: str) -> str:
    """Return the beginning of a text that a message quotes."""
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
