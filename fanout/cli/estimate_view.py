"""Estimates and trials as text."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from fanout.core.units import dollars, duration, plural
from fanout.policy.estimates import Projection, known_sum
from fanout.runs.budget_room import room_words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.client.trials import Trial
    from fanout.policy.estimates import Calls, LaneEstimate
    from fanout.runs.estimate_result import Estimate, ReduceEstimate

__all__ = ["estimate_lines", "short_estimate", "trial_lines"]

_SHOWN_CHARS = 2_000
_STEP_LINES, _STEP_CHARS = 6, 500
_TRIED = "a trial shows it"
_NARROWER = "--max-tokens, or a trial, narrows it"


def estimate_lines(estimate: Estimate) -> Iterator[str]:
    """Yield an estimate, line by line."""
    yield from _counts(estimate)
    for lane in estimate.lanes:
        yield f"{lane.lane}{_mark(estimate, lane)}: {_cost(estimate, lane)}{_time(lane)}"
    if estimate.budget is not None:
        yield room_words(estimate.budget)
    if estimate.unknown_parts:
        yield (
            f"how many {estimate.unknown_parts} the model will name is unknown, so this is the least, with "
            f"one for each text: {_TRIED}"
        )
    if estimate.is_wide:
        yield f"the high end has the longest answers that the model can give: {_NARROWER}"
    yield from _unpriced(estimate)
    if estimate.learnt_calls == 0:
        yield "tokens: a quarter of the bytes, as no call of this model was seen yet"
    elif estimate.learnt_calls:
        yield f"tokens: as {estimate.learnt_calls:,.0f} calls of this model, of any job, have shown"
    yield from _prompts(estimate)


def _prompts(estimate: Estimate) -> Iterator[str]:
    by_system: dict[str, list[str]] = {}
    for step in estimate.steps:
        if step.system:
            by_system.setdefault(step.system, []).append(step.name)
    for system, names in by_system.items():
        of = f" of {'step' if len(names) == 1 else 'steps'} {', '.join(names)}"
        of = "" if len(names) == len(estimate.steps) > 1 else of
        yield f"system prompt{of}:\n{_of_step(system)}"
    for step in estimate.steps:
        if step.prompt is not None:
            yield f"first prompt of step {step.name}:\n{_of_step(step.prompt)}"
    if estimate.system and not estimate.steps:
        yield f"system prompt:\n{_shown(estimate.system)}"
    if estimate.prompt is not None and not estimate.steps:
        yield f"first prompt:\n{_shown(estimate.prompt)}"


def _mark(estimate: Estimate, lane: LaneEstimate) -> str:
    """Return which of several lanes is that of the job."""
    if len(estimate.lanes) == 1:
        return ""
    if estimate.lane == "auto":
        return {"batch": " (auto)", "realtime": " (auto, what would be late)"}.get(lane.lane, "")
    return " (the lane of this job)" if lane.lane == estimate.lane else ""


def _counts(estimate: Estimate) -> Iterator[str]:
    bad = f" ({estimate.bad_documents:,} cannot be used)" if estimate.bad_documents else ""
    least, many = _least(estimate), estimate.unknown_parts or "chunks"
    yield (
        f"{plural(estimate.documents, 'document', 'documents')}{bad}, "
        f"{least}{plural(estimate.chunks, many.removesuffix('s'), many)}, "
        f"{least}{plural(estimate.branches, 'branch', 'branches')}"
    )
    if estimate.plan.calls_high:
        yield f"split by the model: {_calls(estimate.plan)}"
    yield f"branches: {_calls(estimate.calls)}"
    for step in estimate.steps:
        yield f"  step {step.name} ({', '.join(step.models)}): {_calls(step.calls)}"
    if estimate.reduce.calls_high:
        yield f"reduce: {_calls(estimate.reduce)}"
    yield from _reduces(estimate)
    if len(estimate.by_model) > 1:
        for model, calls in estimate.by_model.items():
            yield f"  {model}: {_calls(calls)}"


def _reduces(estimate: Estimate) -> Iterator[str]:
    """Yield what each reduce of a list uses and costs."""
    for one in estimate.reduces:
        if one.name:
            yield f"  reduce {one.name} ({one.model}): {_calls(one.calls)}, {_cost_of(one)}"


def _cost_of(one: ReduceEstimate) -> str:
    low, high = one.cost_usd_low, one.cost_usd_high
    if low is None:
        return "cost unknown"
    if high is None:
        return f"at least {dollars(low)}"
    return dollars(low) if low == high else f"{dollars(low)} to {dollars(high)}"


def _least(estimate: Estimate) -> str:
    return "at least " if estimate.unknown_parts else ""


def _calls(calls: Calls) -> str:
    most = calls.calls_low if calls.calls_high == inf else calls.calls_high
    return (
        f"{_range(calls.calls_low, calls.calls_high)} "
        f"{'call' if round(most) == 1 else 'calls'}, "
        f"{_range(calls.input_low, calls.input_high)} tokens in, "
        f"{_range(calls.output_low, calls.output_high)} out"
    )


def _range(low: float, high: float | None) -> str:
    if high is None or high == inf:
        return f"at least {low:,.0f}"
    return f"{low:,.0f}" if round(low) == round(high) else f"{low:,.0f} to {high:,.0f}"


def cost_text(lane: LaneEstimate, *, is_least: bool = False) -> str:
    """Return the cost of a lane; ``is_least`` if what is likely of it is the least, too."""
    low, high = lane.cost_usd_low, lane.cost_usd_high
    if low is None:
        return "cost unknown"
    least = f"at least {dollars(low)}"
    span = least if high is None else f"{dollars(low)} to {dollars(high)}"
    if low == high or lane.cost_usd_likely is None or is_least:
        return dollars(low) if low == high else span
    return f"about {dollars(lane.cost_usd_likely)} ({span})"


def _cost(estimate: Estimate, lane: LaneEstimate) -> str:
    return cost_text(lane, is_least=estimate.unknown_parts is not None)


def _time(lane: LaneEstimate) -> str:
    if lane.lane == "batch":
        return ", within a day"
    if lane.time_s_low is None:
        return ""
    low = duration(lane.time_s_low)
    if lane.time_s_high is None:
        return f", its calls take {low} or more"
    high = duration(lane.time_s_high)
    return f", its calls take {low}" if low == high else f", its calls take {low} to {high}"


def _unpriced(estimate: Estimate) -> Iterator[str]:
    for model in estimate.unpriced:
        yield f"the price of {model} is unknown: give it with --price, or in FANOUT_PRICES"


def short_estimate(estimate: Estimate) -> str:
    """Return an estimate as one line. A run that follows says by itself which price is unknown."""
    room = "" if estimate.budget is None else f"; {room_words(estimate.budget)}"
    wide = f"; {_NARROWER}" if estimate.is_wide else ""
    if estimate.unknown_parts:
        wide = f"; how many {estimate.unknown_parts} the model will name is unknown: {_TRIED}"
    return (
        f"estimate: {_least(estimate)}{plural(estimate.branches, 'branch', 'branches')}, "
        f"{_calls(estimate.all_calls)}, "
        f"{_cost(estimate, estimate.chosen)}{_time(estimate.chosen)}{wide}{room}"
    )


def trial_lines(trial: Trial) -> Iterator[str]:
    """Yield what a trial has shown, line by line."""
    estimate = trial.estimate
    total = estimate.documents - estimate.bad_documents
    sample = (
        f"{trial.documents:,} of {plural(total, 'document', 'documents')} in "
        f"{plural(trial.chunks, 'part', 'parts')}"
        if trial.documents
        else f"{trial.chunks:,} of {plural(estimate.chunks, 'chunk', 'chunks')}"
    )
    yield (
        f"trial: {sample}, "
        f"{trial.succeeded:,} of {plural(trial.branches, 'branch', 'branches')} succeeded"
    )
    if trial.errors:
        yield "failed: " + ", ".join(f"{kind} {n:,}" for kind, n in sorted(trial.errors.items()))
    if trial.cut_chunks:
        what = ("document", "documents") if trial.documents else ("chunk", "chunks")
        cut = plural(trial.cut_chunks, *what)
        yield f"the budget had no room for {cut}: nothing is projected by them"
    if trial.answers:
        low, middle, high = trial.answers
        median = "" if low == high else f", median {middle:,}"
        yield f"answers: {_range(low, high)} {'token' if high == 1 else 'tokens'}{median}"
    all_of_it = (
        plural(total, "document", "documents")
        if trial.documents
        else plural(estimate.branches, "branch", "branches")
    )
    yield f"all {all_of_it}, by the sample:"
    yield f"  cost: {_projection(trial.cost_usd, dollars)}"
    yield f"  tokens in: {_projection(trial.input_tokens, '{:,.0f}'.format)}"
    yield f"  tokens out: {_projection(trial.output_tokens, '{:,.0f}'.format)}"
    yield f"  failures: {_projection(trial.failures, '{:,.0f}'.format)}"
    if trial.time_s is not None:
        time = Projection(value=trial.time_s, low=trial.time_s_low, high=trial.time_s_high)
        yield f"  time: {_projection(time, duration, one='branch')}"
    if trial.budget is not None:
        yield f"  {room_words(trial.budget)}"
    if estimate.reduce.calls_high:
        several = len(estimate.reduces) > 1
        left_out = "reduces" if several else "reduce"
        yield f"  and the {left_out}, which a trial leaves out: {_calls(estimate.reduce)}"
        yield from _reduces(estimate)
        yield f"  cost with the {left_out}: {_whole_cost(trial)}"


def _whole_cost(trial: Trial) -> str:
    """Return what the branches by the sample, and the reduces by the estimate, cost together."""
    cost, reduces = trial.cost_usd, trial.estimate.reduces
    if cost is None:
        return "unknown"
    low = known_sum([cost.low, *(one.cost_usd_low for one in reduces)])
    likely = known_sum([cost.value, *(one.cost_usd_likely for one in reduces)])
    high = known_sum([cost.high, *(one.cost_usd_high for one in reduces)])
    if likely is None:
        return "unknown"
    if low is None or high is None:
        return f"about {dollars(likely)}"
    return (
        dollars(low)
        if low == high
        else f"about {dollars(likely)} ({dollars(low)} to {dollars(high)})"
    )


def _projection(found: Projection | None, shown: object, *, one: str = "chunk") -> str:
    if found is None or not callable(shown):
        return "unknown"
    if found.low is None or found.high is None:
        return f"{shown(found.value)} (one {one} has no interval)"
    if shown(found.low) == shown(found.high):
        return str(shown(found.value))
    return f"{shown(found.value)} (95%: {shown(found.low)} to {shown(found.high)})"


def _of_step(text: str) -> str:
    """Return the beginning of a prompt of a step, so that the figures above stay on the screen."""
    lines = text.splitlines(keepends=True)
    begin = "".join(lines[:_STEP_LINES])[:_STEP_CHARS].rstrip()
    left = len(text.rstrip()) - len(begin)
    return f"{begin}\n[... {left:,} more characters: --json has all]" if left > 0 else begin


def _shown(text: str) -> str:
    if len(text) <= _SHOWN_CHARS:
        return text
    return f"{text[:_SHOWN_CHARS]}\n[... {len(text) - _SHOWN_CHARS:,} more characters]"
