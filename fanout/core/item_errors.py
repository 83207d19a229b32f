"""What is wrong with one of several steps or reduces of a job, by its name and field."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from fanout.core.errors import SpecError
from fanout.core.field_words import shown

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

__all__ = ["ItemError", "ItemWords", "item_error", "item_path"]


class ItemError(ValueError):
    """A field of an item of a list is wrong.

    Args:
        item: The name of the item, or its number in the list.
        field: Its field, or empty.
        reason: What is wrong.
    """

    def __init__(self, item: str, field: str, reason: str) -> None:
        super().__init__(": ".join(filter(None, (repr(item), field, reason))))
        self.item = item
        self.field = field
        self.reason = reason


class ItemWords(NamedTuple):
    """How a list of a job is named in messages, and what messages say of its items.

    Attributes:
        one: What an item is called: ``step``.
        field: The field of the job in messages.
        names: The fields in which a job may give the list; the last one is that of its model.
        example: Fields of an item, as an example of what it must be.
        is_name: Whether a text can be the name of an item.
        of_all: Returns what is wrong with the list.
        unknown: Returns what is wrong with a field that items do not have.
        wrong: Returns what is wrong with a value.
        inner: Returns the place in an item that a message names.
    """

    one: str
    field: str
    names: tuple[str, ...]
    example: str
    is_name: Callable[[str], bool]
    of_all: Callable[[ErrorDetails], str]
    unknown: Callable[[str], str]
    wrong: Callable[[ErrorDetails], str]
    inner: Callable[[tuple[int | str, ...]], tuple[int | str, ...]]


def item_error(
    first: ErrorDetails, fields: Mapping[str, object] | None, words: ItemWords
) -> SpecError | None:
    """Return the error of an item of a list of a job; None if the error is of another kind.

    Args:
        first: What pydantic says.
        fields: The fields of the job as they were given.
        words: How messages speak of the list.
    """
    where = first["loc"]
    if where[:1] != (words.names[-1],):
        return None
    if len(where) == 1:
        return SpecError(words.of_all(first), field=words.field)
    given = next(filter(None, map((fields or {}).get, words.names)), None)
    number = where[1] if isinstance(where[1], int) else 0
    name = _name(given, number, words)
    field = item_path(words.field, name or str(number + 1), *map(str, words.inner(where[2:])))
    note = "" if name else f" ({words.one} {number + 1} of the list)"
    return SpecError(_reason(first, words) + note, field=field)


def item_path(*parts: str) -> str:
    """Return the name of a field of an item, such as ``steps.kind.prompt``."""
    return ".".join(filter(None, parts))


def _reason(first: ErrorDetails, words: ItemWords) -> str:
    where = first["loc"]
    if first["type"] == "extra_forbidden":
        return words.unknown(str(where[-1]))
    if first["type"] == "missing":
        return "is required"
    if len(where) == 2:  # noqa: PLR2004 - the item itself
        return f"must be a mapping of fields, such as {words.example} (got {shown(first['input'])})"
    message = words.wrong(first)
    return message if "(got " in message else f"{message} (got {shown(first['input'])})"


def _name(items: object, number: int, words: ItemWords) -> str | None:
    if not isinstance(items, Sequence) or isinstance(items, str) or number >= len(items):
        return None
    one = items[number]
    name = one.get("name") if isinstance(one, Mapping) else getattr(one, "name", None)
    return name if isinstance(name, str) and words.is_name(name) else None
