"""Types of Python that stand for the shape of answers, and the instances that answers become."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec
from pydantic import ValidationError

from fanout.core.answer_fields import is_type
from fanout.core.python_types import adapter_of

if TYPE_CHECKING:
    from pydantic import TypeAdapter

__all__ = ["UNTYPED", "AnswerType", "AnswerTypes", "NotOfTypeError", "types_of"]

_SHOWN_CHARS = 200


class NotOfTypeError(ValueError):
    """A valid answer is no instance of its type, by a check that only Python knows."""


class AnswerType:
    """A type of Python, to which answers in JSON are converted.

    Args:
        kind: A pydantic model, dataclass, TypedDict, Enum, ``Literal``, ``list[...]`` and the like.
    """

    def __init__(self, kind: Any) -> None:
        self.kind = kind

    @property
    def name(self) -> str:
        """The name of the type."""
        return getattr(self.kind, "__name__", str(self.kind))

    @cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        return adapter_of(self.kind)

    def instance(self, text: str | bytes) -> Any:
        """Return the instance of an answer in JSON. Raises NotOfTypeError."""
        try:
            return self._adapter.validate_json(text)
        except ValidationError as error:
            raise NotOfTypeError(_described(error)) from None
        except Exception as error:
            # What a validator or a constructor of the user raises.
            reason = f"{type(error).__name__}: {error}"
            raise NotOfTypeError(reason[:_SHOWN_CHARS]) from error


class AnswerTypes(msgspec.Struct, frozen=True, kw_only=True):
    """The types of the answers and of the aggregate of a job; None where there is none.

    Attributes:
        answer: That of answers; in a job with steps, that of the first step that may give them.
        aggregate: That of the aggregate.
        reduces: In a job with a list of reduces, those of their aggregates, by name.
        steps: In a job with steps, those of the steps that may give the output, by name.
    """

    answer: AnswerType | None = None
    aggregate: AnswerType | None = None
    steps: dict[str, AnswerType] = {}
    reduces: dict[str, AnswerType] = {}

    @property
    def has_aggregates(self) -> bool:
        """Whether an aggregate has a type."""
        return self.aggregate is not None or bool(self.reduces)

    def of(self, step: str | None) -> AnswerType | None:
        """Return the type of an output, which a step has given, or None in a job without steps."""
        return self.answer if step is None else self.steps.get(step)


UNTYPED = AnswerTypes()


def types_of(fields: object, outputs: Sequence[str] = ()) -> AnswerTypes:
    """Return the types among the fields of a job, before they become JSON Schemas.

    Args:
        fields: The fields.
        outputs: The names of the steps that may give the output.
    """
    if not isinstance(fields, Mapping):
        return UNTYPED
    answer, aggregate = (_type(fields.get(name)) for name in ("schema", "aggregate_schema"))
    steps = _of_steps(fields.get("steps"), outputs)
    reduces = dict(_of_reduces(fields.get("reduces") or fields.get("reduce")))
    if answer is None and aggregate is None and not steps and not reduces:
        return UNTYPED
    answer = answer or next(iter(steps.values()), None)
    return AnswerTypes(answer=answer, aggregate=aggregate, steps=steps, reduces=reduces)


def _of_reduces(reduces: object) -> Iterator[tuple[str, AnswerType]]:
    for reduce in reduces if isinstance(reduces, (list, tuple)) else ():
        if not isinstance(reduce, Mapping):
            continue
        # The fields may stand beside the name, or below that of the aggregator.
        places = [reduce, *(one for one in reduce.values() if isinstance(one, Mapping))]
        for place in places:
            made = _type(place.get("aggregate_schema"))
            if made is not None:
                yield reduce["name"], made


def _of_steps(steps: object, outputs: Sequence[str]) -> dict[str, AnswerType]:
    found: dict[str, AnswerType] = {}
    for step in steps if isinstance(steps, Sequence) else ():
        made = _type(step.get("schema")) if isinstance(step, Mapping) else None
        if made is not None and step["name"] in outputs:
            found[step["name"]] = made
    return found


def _type(value: object) -> AnswerType | None:
    return AnswerType(value) if is_type(value) else None


def _described(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    where = "".join(f"/{part}" for part in first["loc"]) or "the answer"
    got = repr(first["input"])
    shown = got if len(got) <= _SHOWN_CHARS else f"{got[:_SHOWN_CHARS]}..."
    more = error.error_count() - 1
    return f"{where}: {first['msg']} (got {shown})" + (f"; and {more:,} more" if more else "")
