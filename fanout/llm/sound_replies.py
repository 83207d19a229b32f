"""Brings what a model returns or raises into the types that it has to have.

A model may be a user's function, whose replies and errors hold any values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import msgspec

from fanout.core.errors import LLMError
from fanout.core.function_values import plain_text
from fanout.core.lanes import Lane
from fanout.core.rate_limits import SeenLimit, SeenLimits
from fanout.core.records import ErrorKind, Usage
from fanout.llm.base import LLMReply
from fanout.llm.usage import believable

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["sound_error", "sound_reply"]

_KINDS = frozenset(ErrorKind)
_LANES = frozenset(get_args(Lane))
_UNKNOWN = Usage(calls=1)
# No rate limit has so many requests or tokens.
_MOST = 1e13


def sound_reply(reply: Any) -> LLMReply:
    """Return a reply whose values have their types; those that say nothing are left out.

    Raises:
        LLMError: It is no reply, or has no text (``invalid_output``).
        Exception: What the value of a finish reason raises when it is read.
    """
    if not isinstance(reply, LLMReply):
        name = type(reply).__name__
        raise LLMError(ErrorKind.INVALID_OUTPUT, f"the model returned {name}, not an LLMReply")
    text: Any = reply.text
    if not isinstance(text, str):
        name = type(text).__name__
        raise LLMError(ErrorKind.INVALID_OUTPUT, f"the model's text is of type {name}")
    usage = _usage(reply.usage) or _UNKNOWN
    if (
        usage is reply.usage
        and type(text) is str
        and reply.lane is None
        and reply.limits is None
        and (reply.model is None or type(reply.model) is str)
        and (reply.response_id is None or type(reply.response_id) is str)
        and (reply.finish_reason is None or type(reply.finish_reason) is str)
        and type(reply.tokens) is tuple
    ):
        return reply
    found = {
        "text": plain_text(text),
        "usage": usage,
        "model": _text(reply.model),
        "response_id": _text(reply.response_id),
        "finish_reason": _text(reply.finish_reason),
        "tokens": _entries(reply.tokens),
        "lane": reply.lane if reply.lane is None else _lane(reply.lane),
        "limits": reply.limits if reply.limits is None else _limits(reply.limits),
    }
    changed = {name: value for name, value in found.items() if value is not getattr(reply, name)}
    return msgspec.structs.replace(reply, **changed) if changed else reply


def sound_error(error: LLMError) -> None:
    """Change the values of an error to ones that have their types.

    Raises:
        Exception: What a value raises when it is read.
    """
    kind: Any = error.kind
    if not isinstance(kind, ErrorKind):
        error.kind = (
            ErrorKind(kind) if isinstance(kind, str) and kind in _KINDS else ErrorKind.INTERNAL
        )
    error.usage = None if error.usage is None else _usage(error.usage)
    error.finish_reason = _text(error.finish_reason)
    error.limits = None if error.limits is None else _limits(error.limits)
    stop_after: Any = error.stop_after
    if stop_after is not None and not (type(stop_after) is int and stop_after >= 0):
        error.stop_after = None
    # A message may be any value, too.
    str(error)


def _usage(usage: Any) -> Usage | None:
    return believable(usage) if isinstance(usage, Usage) else None


def _text(value: Any) -> str | None:
    """Return a value as text: also that of an enum, where a user's class has one."""
    if value is None or type(value) is str:
        return value
    return str(getattr(value, "value", value))


def _lane(value: Any) -> Any:
    return value if isinstance(value, str) and value in _LANES else None


def _limits(limits: Any) -> SeenLimits | None:
    """Return rate limits without those that have a value of a wrong type, or a senseless one."""
    if not isinstance(limits, SeenLimits):
        return None
    given = {name: getattr(limits, name) for name in SeenLimits.__struct_fields__}
    sound = {name: limit for name, limit in given.items() if limit is None or _is_sound(limit)}
    return limits if len(sound) == len(given) else SeenLimits(**sound)


def _is_sound(limit: Any) -> bool:
    if not isinstance(limit, SeenLimit):
        return False
    values: list[Any] = [limit.limit, limit.remaining, limit.reset_s, limit.period_s]
    known = [value for value in values if value is not None]
    return all(type(value) in {int, float} and 0 <= value < _MOST for value in known)


def _entries(tokens: Any) -> Sequence[Any]:
    return tokens if isinstance(tokens, tuple | list) else ()
