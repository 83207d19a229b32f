"""What providers do not enforce of the shape of answers, to be reported before a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fanout.core.answer_shape import shape_of
from fanout.core.asks import asks_of
from fanout.llm.gemini_schema import response_schema

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.core.spec import RunSpec
    from fanout.core.strict_schema import Dialect

__all__ = ["unenforced"]

_SHOWN = 5
# By the first part of a model's name; litellm takes OpenAI's form for all of its providers.
_DIALECTS: dict[str, Dialect] = {
    "openai": "openai",
    "anthropic": "anthropic",
    "gemini": "gemini",
    "litellm": "openai",
}


def unenforced(spec: RunSpec) -> Iterator[str]:
    """Yield a line for each provider and schema of a job of which the provider enforces less.

    fanout checks each answer in any case. A server behind a base URL may enforce still less.
    """
    fields = [
        # What a verdict looks like is not for the user to change.
        (
            "schema" if ask.step is None else f"schema of step {ask.step.name}",
            ask.schema,
            ask.models,
        )
        for ask in asks_of(spec)
        if ask.step is None or ask.step.judge is None
    ]
    of_map = [(field, schema, (*models, *spec.fallback)) for field, schema, models in fields]
    of_reduces = [
        (reduce.field("aggregate_schema"), reduce.schema, (reduce.model,))
        for reduce in spec.reductions
    ]
    for field, schema, models in (*of_map, *of_reduces):
        providers = dict.fromkeys(model.partition("/")[0] for model in models if "/" in model)
        for provider in providers:
            if schema is not None and provider in _DIALECTS:
                yield from _line(provider, field, schema)


def _line(provider: str, field: str, schema: dict[str, Any]) -> Iterator[str]:
    shape = shape_of(schema)
    native = None if shape is None else shape.native(_DIALECTS[provider])
    if native is None or (provider == "gemini" and response_schema(native) is None):
        yield f"{provider} cannot enforce {field}: it is asked in words, and fanout checks the answers"
    elif native.unchecked:
        shown = ", ".join(native.unchecked[:_SHOWN])
        more = len(native.unchecked) - _SHOWN
        shown += f" and {more:,} more" if more > 0 else ""
        yield f"{provider} does not enforce of {field}: {shown}; fanout checks it"
