"""The rules that find fields of a job without effect, so that they are refused and not ignored.

Only fields that the user gave are checked, including those that have their default value. The
fields of a stored run are not checked again: another version may have written them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from fanout.core.errors import SpecError
from fanout.core.spec import SIZED_SPLITS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fanout.core.spec import RunSpec

__all__ = ["FUNCTION_RULES", "RULES", "EffectRule", "UnusedField", "require_used", "unused_fields"]


class EffectRule(NamedTuple):
    """When fields of a job have an effect.

    Attributes:
        fields: Their names; a field of a part with the part's name, as ``retries.base_wait_s``.
        deciding: The fields that decide it. If an option gives one of these, the field of a job
            file may be left without effect.
        is_used: Returns whether the fields have an effect.
        reason: Returns why they have none, for the error message.
    """

    fields: tuple[str, ...]
    deciding: tuple[str, ...]
    is_used: Callable[[RunSpec], bool]
    reason: Callable[[RunSpec], str]


class UnusedField(NamedTuple):
    """A field that the user gave and that has no effect.

    Attributes:
        field: Its name.
        deciding: See EffectRule.
        reason: Why, for the error message.
    """

    field: str
    deciding: tuple[str, ...]
    reason: str


RULES = (
    EffectRule(
        ("chunk_tokens", "chunk_overlap_tokens"),
        ("split",),
        lambda spec: spec.split in SIZED_SPLITS,
        lambda spec: (
            f"has no effect with split {spec.split!r}; leave it out, or choose another split "
            f"({', '.join(SIZED_SPLITS)})"
        ),
    ),
    EffectRule(
        ("aggregate_max_tokens", "context_tokens"),
        ("reduce", "aggregate_prompt"),
        lambda spec: spec.reduction == "llm",
        lambda spec: (
            f"has no effect with reduce {spec.reduction!r}; leave it out, or give an aggregate "
            "prompt, for a reduce by the model"
        ),
    ),
    EffectRule(
        ("retries.base_wait_s", "retries.max_wait_s"),
        ("max_attempts",),
        lambda spec: spec.retries.max_attempts > 1,
        lambda _spec: (
            "has no effect with max_attempts 1, as no call is made again; leave it out, or allow "
            "more attempts"
        ),
    ),
    EffectRule(
        ("seed",),
        (),
        lambda spec: not spec.model.startswith("anthropic/"),
        lambda spec: f"has no effect: {spec.model} takes no seed; leave it out",
    ),
)


# Further rules for a model that is a function with the prompt as its only argument.
FUNCTION_RULES = (
    EffectRule(
        ("system", "temperature", "seed", "stop"),
        (),
        lambda _spec: False,
        lambda _spec: "has no effect: the model is a function that takes the prompt only",
    ),
    EffectRule(
        ("max_tokens",),
        (),
        # The rate limiter books these tokens for each call.
        lambda spec: spec.rate.tokens_per_minute is not None,
        lambda _spec: "has no effect: the model is a function that takes the prompt only",
    ),
)


def unused_fields(spec: RunSpec, *, is_function: bool = False) -> Iterator[UnusedField]:
    """Yield the fields of a job that the user gave and that have no effect.

    Args:
        spec: The job.
        is_function: Whether its model is a function that takes the prompt only.
    """
    for rule in (*RULES, *FUNCTION_RULES) if is_function else RULES:
        if not rule.is_used(spec):
            for field in rule.fields:
                if _is_given(spec, field):
                    yield UnusedField(field, rule.deciding, rule.reason(spec))


def require_used(spec: RunSpec, *, is_function: bool = False) -> None:
    """Check that all fields that the user gave have an effect.

    Args:
        spec: The job.
        is_function: Whether its model is a function that takes the prompt only.

    Raises:
        SpecError: A field has no effect; the message has its name and the reason.
    """
    for unused in unused_fields(spec, is_function=is_function):
        raise SpecError(unused.reason, field=unused.field)


def _is_given(spec: RunSpec, field: str) -> bool:
    part, _, inner = field.rpartition(".")
    if part and part not in spec.model_fields_set:
        return False
    holder = getattr(spec, part) if part else spec
    # None selects the default, and an empty list requests nothing.
    return inner in holder.model_fields_set and getattr(holder, inner) not in (None, ())
