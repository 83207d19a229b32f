"""Passages as they are found: by an index, or by a function of the user."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.core.errors import LLMError
from fanout.core.function_values import plain_text
from fanout.core.records import ErrorKind

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Passage", "passages_from"]


class Passage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A piece of text that may help with an answer.

    Attributes:
        id: Its id, by which an answer may cite it.
        text: The text.
        source: Where it is from, for the reader: the name of its document, with its pages.
        title: Its title, or the headings that it stands under.
        score: How well it fits the query; higher is better. None if that is unknown.
    """

    id: str
    text: str
    source: str = ""
    title: str = ""
    score: float | None = None


def passages_from(returned: Any, *, most: int) -> list[Passage]:
    """Return what a function of the user found, the first ``most`` of it.

    Args:
        returned: Strings, or mappings with ``text`` and perhaps ``id``, ``source``, ``title`` and
            ``score``, best first. None is no passage.
        most: The most passages.

    Raises:
        LLMError: It is something else (kind ``invalid_output``).
    """
    if returned is None:
        return []
    if isinstance(returned, (str, bytes, Mapping)):
        raise _wrong(f"returned {type(returned).__name__}, not a list of passages")
    try:
        listed = [one for one, _ in zip(returned, range(most), strict=False)]
    except TypeError:
        raise _wrong(f"returned {type(returned).__name__}, not a list of passages") from None
    found = [_passage(one, number) for number, one in enumerate(listed, 1)]
    _require_distinct(found)
    return found


def _passage(one: Any, number: int) -> Passage:
    if isinstance(one, Passage):
        one = msgspec.structs.asdict(one)
    if isinstance(one, str):
        return Passage(id=f"p{number}", text=plain_text(one))
    if not isinstance(one, Mapping):
        raise _wrong(f"returned a passage that is {type(one).__name__}, not a string or a mapping")
    text = one.get("text")
    if not isinstance(text, str):
        raise _wrong(f"returned a passage without text (its keys: {', '.join(map(str, one))})")
    own = one.get("id")
    return Passage(
        # A bracket or a line break would end the mark in the prompt.
        id=_line(own).replace("]", ")") if own not in (None, "") else f"p{number}",
        text=plain_text(text),
        source=_line(one.get("source")),
        title=_line(one.get("title")),
        score=_score(one.get("score")),
    )


def _line(value: Any) -> str:
    return "" if value is None else " ".join(str(value).split())


def _score(value: Any) -> float | None:
    if value is None:
        return None
    try:
        score = float(value)
    except (TypeError, ValueError):
        raise _wrong(f"returned a score that is no number ({value!r})") from None
    return score if math.isfinite(score) else None


def _require_distinct(found: Sequence[Passage]) -> None:
    seen: set[str] = set()
    for one in found:
        if one.id in seen:
            raise _wrong(f"returned two passages with the id {one.id!r}")
        seen.add(one.id)


def _wrong(reason: str) -> LLMError:
    return LLMError(ErrorKind.INVALID_OUTPUT, f"the function {reason}")
