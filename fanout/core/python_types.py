"""Types of Python as pydantic reads them, also a ``typing.TypedDict`` on Python 3.11."""

from __future__ import annotations

import sys
import types
import typing
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal, NotRequired, Required, TypeVar, get_args, get_origin

import typing_extensions
from pydantic import TypeAdapter

__all__ = ["adapter_of"]

# Before, pydantic refuses a typing.TypedDict, which lacks the bases that it was made from.
_IS_READ = sys.version_info >= (3, 12)


def adapter_of(kind: Any) -> TypeAdapter[Any]:
    """Return what validates values of a type, and makes its JSON Schema. Raises what pydantic raises."""
    return TypeAdapter(kind if _IS_READ else _readable(kind, {}, {}))


def _readable(kind: Any, made: dict[Any, Any], given: dict[TypeVar, Any]) -> Any:
    """Return a type with each typing.TypedDict in it as one of typing_extensions.

    Args:
        kind: The type.
        made: What was made of those above it, as types may refer to themselves.
        given: The arguments of a generic one above it.
    """
    origin, args = get_origin(kind), get_args(kind)
    if isinstance(kind, TypeVar):
        return given.get(kind, kind)
    if typing.is_typeddict(kind):
        return _typed_dict(kind, made, dict.fromkeys(getattr(kind, "__parameters__", ()), Any))
    if origin is None or origin is Literal:
        return kind
    if origin is Annotated:
        return Annotated[_readable(args[0], made, given), *kind.__metadata__]
    inner = tuple(_readable(one, made, given) for one in args)
    if typing.is_typeddict(origin):
        return _typed_dict(origin, made, dict(zip(origin.__parameters__, inner, strict=True)))
    return kind if inner == args else _with_args(kind, inner)


def _with_args(kind: Any, args: tuple[Any, ...]) -> Any:
    if isinstance(kind, types.UnionType):
        return reduce(or_, args)
    return kind.copy_with(args) if hasattr(kind, "copy_with") else get_origin(kind)[args]


def _typed_dict(kind: Any, made: dict[Any, Any], given: dict[TypeVar, Any]) -> Any:
    key = (kind, tuple(given.values()))
    if key in made:
        return made[key]
    make: Any = typing_extensions.TypedDict
    readable = make(kind.__name__, {})
    made[key] = readable
    for name in ("__module__", "__qualname__", "__doc__", "__pydantic_config__"):
        if hasattr(kind, name):
            setattr(readable, name, getattr(kind, name))
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        mark = NotRequired if name in kind.__optional_keys__ else Required
        if get_origin(hint) in (Required, NotRequired):
            mark, hint = get_origin(hint), get_args(hint)[0]  # noqa: PLW2901 - without its mark
        readable.__annotations__[name] = mark[_readable(hint, made, given)]
    return readable
