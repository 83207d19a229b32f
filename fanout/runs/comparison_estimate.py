"""How many calls the reduces ``best``, ``pairwise`` and ``resolve`` of a job will make, and their tokens."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

import msgspec

from fanout.core.answer_parts import EACH, part_of, schemas_at
from fanout.core.errors import SpecError
from fanout.core.own_schemas import COMPARISON_SCHEMA, RESOLUTION_SCHEMA
from fanout.core.tokens import BYTES_PER_TOKEN, utf8_bytes
from fanout.inputs.comparison_prompts import comparison_frame, comparison_room
from fanout.inputs.resolution_prompts import resolution_prompt
from fanout.inputs.token_counters import ratio_of
from fanout.policy.estimates import Calls
from fanout.policy.reduce_ranges import comparisons_of
from fanout.runs.token_counts import comparison_tokens

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fanout.core.reduces import Reduce
    from fanout.core.spec import RunSpec
    from fanout.runs.ask_counts import AnswerTokens

__all__ = ["comparison_calls", "competitions", "resolution_calls"]

# Of a verdict with its reasons.
_LEAST_VERDICT, _LIKELY_VERDICT = 12.0, 120.0
_CALLS = 2  # of each comparison
# Of a value that is resolved, and of a verdict about two of them.
_VALUE_TOKENS, _LIKELY_SAME = 10.0, 40.0


def competitions(
    spec: RunSpec, reduce: Reduce, chunks: int, groups: Mapping[str, int], ungrouped: int
) -> list[tuple[float, float]]:
    """Return how many outputs compete with each other, and how often so many do.

    Args:
        spec: The job.
        reduce: The reduce that compares.
        chunks: The number of its chunks.
        groups: The chunks of each group, once for each aspect.
        ungrouped: The chunks of further groups, which are taken to be of the same sizes.
    """
    aspects = len(spec.aspect_names)
    each = spec.variants.count / aspects
    if reduce.kind != "best":
        models = len(spec.models) if reduce.is_by_model else 1
        times = models * (1 + ungrouped / max(1, sum(groups.values())))
        return [(size * each / models, times) for size in groups.values()]
    return [(each, float(chunks * aspects))] if each > 1 else [(float(aspects), float(chunks))]


def resolution_calls(spec: RunSpec, reduce: Reduce, answers: float) -> Calls:
    """Return the calls that say which values of so many answers are the same.

    How many values are alike is unknown: none at least, and one for each answer is likely. There are no
    more values than labels that an answer may be, and more than answers only where these have lists of them.
    """
    values = _most_values(spec, reduce, answers)
    high = min(float(reduce.max_pairs), values * max(0.0, values - 1) / 2)
    likely = min(high, answers)
    bytes_per_token = ratio_of(spec.tokenizer) or float(BYTES_PER_TOKEN)
    frame = utf8_bytes(resolution_prompt(reduce.by[0], "", "", reduce.criteria)) / bytes_per_token
    frame += utf8_bytes(msgspec.json.encode(RESOLUTION_SCHEMA).decode()) / bytes_per_token
    prompt = frame + 2 * _VALUE_TOKENS
    _, verdict = comparison_tokens(spec, reduce)
    return Calls(
        calls_likely=likely,
        calls_high=high,
        input_likely=likely * prompt,
        input_high=high * prompt,
        output_likely=likely * min(_LIKELY_SAME, verdict),
        output_high=high * float(verdict),
    )


def _most_values(spec: RunSpec, reduce: Reduce, answers: float) -> float:
    """Return the most values that can differ; infinity where that is unknown."""
    schema, choices = spec.answer_schema, spec.answer_choices
    part = part_of(reduce.by[0], schema=schema, choices=choices, steps=spec.step_names)
    has_lists = EACH in part.path and part.sources != ("column",)
    most = inf if has_lists and answers else answers
    if reduce.group_by is not None or part.sources != ("answer",):
        # Each group has values of its own.
        return most
    if choices:
        return most if part.path else min(most, len(choices))
    labels = [one.get("enum") for one in schemas_at(schema or {}, part.path)]
    return min(most, sum(map(len, filter(None, labels)))) if labels and all(labels) else most


def comparison_calls(
    spec: RunSpec,
    reduce: Reduce,
    sizes: Iterable[tuple[float, float]],
    branches: Calls,
    outputs: AnswerTokens,
) -> Calls:
    """Return the calls that compare outputs.

    Args:
        spec: The job.
        reduce: The reduce that compares.
        sizes: How many outputs compete in a slot or group, and how many such there are.
        branches: The calls of the branches: a judge may see their prompt.
        outputs: The tokens of an output.
    """
    has_task = reduce.kind == "best"
    low = likely = high = 0.0
    for size, times in sizes:
        counts = comparisons_of(size, k=reduce.k, is_best=has_task)
        low, likely, high = (
            one + _CALLS * times * count
            for one, count in zip((low, likely, high), counts, strict=True)
        )
    bytes_per_token = ratio_of(spec.tokenizer) or float(BYTES_PER_TOKEN)
    frame = utf8_bytes(comparison_frame(reduce.criteria, has_task=has_task)) / bytes_per_token
    frame += utf8_bytes(msgspec.json.encode(COMPARISON_SCHEMA).decode()) / bytes_per_token
    window, verdict = comparison_tokens(spec, reduce)
    try:
        room = float(
            comparison_room(context_tokens=window, frame_tokens=int(frame), answer_tokens=verdict)
        )
    except SpecError:
        room = 0.0
    task = branches.input_likely / max(1.0, branches.calls_likely) if has_task else 0.0

    def prompt(answer: float) -> float:
        return frame + min(room, task + 2 * answer)

    most = outputs.likely if outputs.most is None else outputs.most
    return Calls(
        calls_low=low,
        calls_likely=likely,
        calls_high=high,
        input_low=low * prompt(outputs.least),
        input_likely=likely * prompt(outputs.likely),
        input_high=high * prompt(most),
        output_low=low * _LEAST_VERDICT,
        output_likely=likely * min(_LIKELY_VERDICT, verdict),
        output_high=high * float(verdict),
    )
