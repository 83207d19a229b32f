"""Which fields of a job have no effect beside its others: they are refused, and not ignored.

Only fields that somebody gave count, at the default as well. What a run has stored is not looked at
again: its fields were given to another version, or by nobody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from fanout.core.errors import SpecError
from fanout.core.spec import SIZED_SPLITS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fanout.core.spec import RunSpec

__all__ = ["FUNCTION_RULES", "RULES", "Rule", "Unused", "require_used", "unused_fields"]


class Rule(NamedTuple):
    """When fields of a job have an effect.

    Attributes:
        fields: Their names; those of a part with it, as ``retries.base_wait_s``.
        deciding: The fields of which an option may overrule it, where a job file has it.
        is_used: Says whether they have one.
        reason: Why they have none, for people.
    """

    fields: tuple[str, ...]
    deciding: tuple[str, ...]
    is_used: Callable[[RunSpec], bool]
    reason: Callable[[RunSpec], str]


class Unused(NamedTuple):
    """A field that was given and has no effect.

    Attributes:
        field: Its name.
        deciding: See Rule.
        reason: Why, for people.
    """

    field: str
    deciding: tuple[str, ...]
    reason: str


RULES = (
    Rule(
        ("chunk_tokens", "chunk_overlap_tokens"),
        ("split",),
        lambda spec: spec.split in SIZED_SPLITS,
        lambda spec: (
            f"has no effect with split {spec.split!r}; leave it out, or choose another split "
            f"({', '.join(SIZED_SPLITS)})"
        ),
    ),
    Rule(
        ("aggregate_max_tokens", "context_tokens"),
        ("reduce", "aggregate_prompt"),
        lambda spec: spec.reduction == "llm",
        lambda spec: (
            f"has no effect with reduce {spec.reduction!r}; leave it out, or give an aggregate "
            "prompt, for a reduce by the model"
        ),
    ),
    Rule(
        ("retries.base_wait_s", "retries.max_wait_s"),
        ("max_attempts",),
        lambda spec: spec.retries.max_attempts > 1,
        lambda _spec: (
            "has no effect with max_attempts 1, as no call is made again; leave it out, or allow "
            "more attempts"
        ),
    ),
    Rule(
        ("seed",),
        (),
        lambda spec: not spec.model.startswith("anthropic/"),
        lambda spec: f"has no effect: {spec.model} takes no seed; leave it out",
    ),
)


# Beside these, where the model is a function that takes the prompt and nothing else.
FUNCTION_RULES = (
    Rule(
        ("system", "temperature", "seed", "stop"),
        (),
        lambda _spec: False,
        lambda _spec: "has no effect: the model is a function that takes the prompt only",
    ),
    Rule(
        ("max_tokens",),
        (),
        # A call books them.
        lambda spec: spec.rate.tokens_per_minute is not None,
        lambda _spec: "has no effect: the model is a function that takes the prompt only",
    ),
)


def unused_fields(spec: RunSpec, *, is_function: bool = False) -> Iterator[Unused]:
    """Yield the fields of a job that were given and have no effect.

    Args:
        spec: The job.
        is_function: Whether its model is a function that takes the prompt only.
    """
    for rule in (*RULES, *FUNCTION_RULES) if is_function else RULES:
        if not rule.is_used(spec):
            for field in rule.fields:
                if _is_given(spec, field):
                    yield Unused(field, rule.deciding, rule.reason(spec))


def require_used(spec: RunSpec, *, is_function: bool = False) -> None:
    """Make sure that all fields of a job that were given have an effect.

    Args:
        spec: The job.
        is_function: Whether its model is a function that takes the prompt only.

    Raises:
        SpecError: One has none; the message has its name, and why.
    """
    for unused in unused_fields(spec, is_function=is_function):
        raise SpecError(unused.reason, field=unused.field)


def _is_given(spec: RunSpec, field: str) -> bool:
    part, _, inner = field.rpartition(".")
    if part and part not in spec.model_fields_set:
        return False
    holder = getattr(spec, part) if part else spec
    # None leaves a field to its default, and an empty list asks for nothing.
    return inner in holder.model_fields_set and getattr(holder, inner) not in (None, ())
