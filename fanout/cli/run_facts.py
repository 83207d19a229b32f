"""The facts of a run as short texts, for its progress and its status."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.cli.speed import eta_s
from fanout.core.day_budgets import ALL_MODELS
from fanout.core.records import RunStatus
from fanout.core.units import clock, cost_of, count_of, plural
from fanout.runs.savings import saved_parts
from fanout.runs.status import failed_call_parts, kept_notes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fanout.cli.speed import Speed
    from fanout.core.records import ErrorKind, Usage
    from fanout.runs.budget_status import BudgetStatus
    from fanout.runs.status import Status

__all__ = [
    "Row",
    "batch_parts",
    "cap_parts",
    "day_parts",
    "lane_name",
    "lane_text",
    "model_lines",
    "more_parts",
    "notice_parts",
    "pause_hint",
    "run_rows",
    "speed_parts",
    "stop_hint",
    "token_counts",
    "vanished_parts",
    "wait_hint",
]

_MOST_VANISHED = 3
# A label and its facts.
Row = tuple[str, list[str]]

_SHOWN_KINDS = 6
_MOST_BATCHES = 4
# What becomes of a batch, by its state.
_BATCH_STATES = {
    "forming": "is being filled",
    "intent": "is being sent",
    "submitted": "is at the provider",
    "landing": "has ended, and its answers are read",
    "cancelling": "is being cancelled",
}


def run_rows(status: Status, speed: Speed | None) -> list[Row]:
    """Return the facts of a run besides its progress; its ``speed`` unless it has ended."""
    moves = speed is not None and not status.status.has_ended
    planned = () if status.plan is None else (status.plan,)
    answered = sum(stage.done for stage in (*planned, *status.stages)) - status.saved.calls
    again = status.usage.calls - max(0, answered)
    lane = lane_text(status)
    rows = {
        "speed": [*speed_parts(speed), *_eta(status, speed)] if speed and moves else [],
        "lane": [lane] if lane else [],
        "limits": limit_parts(status),
        "budgets": day_parts(status.day_budgets),
        "batches": batch_parts(status),
        "latency": _latency(status),
        "usage": _usage(status.usage),
        "cache": saved_parts(status.saved),
        "by model": model_lines(status),
        "retries": [plural(again, "call was made again", "calls were made again")]
        if again > 0 and status.asks_once
        else [],
        "errors": [*_kinds(status.errors), *failed_call_parts(status)],
        "kept": kept_notes(status),
        "vanished": vanished_parts(status),
        "notice": notice_parts(status),
    }
    return [(label, parts) for label, parts in rows.items() if parts]


def more_parts(status: Status) -> list[str]:
    """Return the lane of a run, its batches, cap, priority and budget, if it has any."""
    lane = [f"lane {text}"] if (text := lane_text(status)) else []
    return [*lane, *batch_parts(status), *limit_parts(status)]


def lane_name(status: Status) -> str:
    """Return how the calls of a run are bought; empty for the list price."""
    return "" if status.lane in (None, "realtime") else str(status.lane)


def lane_text(status: Status) -> str:
    """Return how the calls of a run are bought, and whether some could not wait; empty for the list price."""
    late = " (calls at the list price, to be in time)" if status.is_late else ""
    return f"{name}{late}" if (name := lane_name(status)) else ""


def limit_parts(status: Status) -> list[str]:
    """Return the cap of a run, its priority, its budget, and the learnt limits that it keeps to."""
    budget = [] if status.budget is None else [status.budget.words]
    return [*cap_parts(status), *budget, *held_parts(status)]


def held_parts(status: Status) -> list[str]:
    """Return the learnt limits that the calls of a run keep to, and whether they wait for them."""
    return [
        f"{model} takes {limit.words}{': calls wait for that' if limit.is_waited_for else ''}"
        for model, limit in sorted(status.limits.items())
        if limit.words
    ]


def cap_parts(status: Status) -> list[str]:
    """Return the cap of a run, and its priority, if it has any."""
    parts = []
    if status.max_workers is not None:
        cap = f"max_workers {status.max_workers:,}"
        parts.append(cap if status.status.has_ended else f"{cap} ({status.permits_used:,} in use)")
    if status.priority != 1:
        parts.append(f"priority {status.priority:g}")
    return parts


def day_parts(budgets: Mapping[str, BudgetStatus]) -> list[str]:
    """Return what is spent of budgets of this day, by model."""
    return [
        f"{'all models' if name == ALL_MODELS else name}: {one.day_words}"
        for name, one in sorted(budgets.items())
    ]


def notice_parts(status: Status) -> list[str]:
    """Return what to know of a run before it has ended; later, its results have all of it."""
    return [status.notice] if status.notice and not status.status.has_ended else []


def vanished_parts(status: Status) -> list[str]:
    """Return which workers have vanished with branches in hand."""
    names = sorted(status.vanished)
    parts = [
        f"worker {name} has vanished with {plural(status.vanished[name], 'branch', 'branches')} in hand"
        for name in names[:_MOST_VANISHED]
    ]
    if len(names) > _MOST_VANISHED:
        parts.append(f"and {plural(len(names) - _MOST_VANISHED, 'more worker', 'more workers')}")
    return parts


def batch_parts(status: Status) -> list[str]:
    """Return how many branches wait for batches, and how far the batches are."""
    waiting = plural(status.gathered, "branch waits", "branches wait")
    parts = [f"{waiting} for an answer of a batch"] if status.gathered else []
    for batch in status.batches[:_MOST_BATCHES]:
        name = batch.batch_id or f"batch {batch.number}"
        part = f"{name} {_BATCH_STATES.get(batch.state, batch.state)}"
        if batch.age_s is None:
            part += f" with {plural(batch.calls, 'call', 'calls')}"
        else:
            part += f", {batch.answered:,} of {batch.calls:,} answered after {clock(batch.age_s)}"
        parts.append(f"{part} ({batch.problem})" if batch.problem else part)
    more = len(status.batches) - _MOST_BATCHES
    return [*parts, f"{more:,} more"] if more > 0 else parts


def speed_parts(speed: Speed) -> list[str]:
    """Return calls and tokens per second."""
    if speed.calls is None:
        return ["? calls/s"]
    parts = [f"{speed.calls:,.1f} calls/s"]
    if speed.input_tokens is not None and speed.output_tokens is not None:
        parts.append(f"{speed.input_tokens:,.0f} tokens/s in, {speed.output_tokens:,.0f} out")
    return parts


def _eta(status: Status, speed: Speed) -> list[str]:
    seconds = eta_s(status, speed)
    if seconds is not None:
        return [f"ETA {clock(seconds)}"]
    return ["ETA ?"] if status.status is RunStatus.RUNNING and status.total > status.done else []


def _latency(status: Status) -> list[str]:
    latency = status.latency
    if status.lane == "batch" and not latency.count:
        # It will have none.
        return []
    shown = {share: latency.percentile_s(share / 100) for share in (50, 90, 99)}
    return [f"p{share} {'?' if s is None else f'{s:.3g} s'}" for share, s in shown.items()]


def _usage(usage: Usage) -> list[str]:
    return [plural(usage.calls, "call", "calls"), token_counts(usage), f"cost {cost_of(usage)}"]


def model_lines(status: Status) -> list[str]:
    """Return calls, tokens and cost by model, as lines; none if the run calls a single one."""
    return [
        f"{model}: {' · '.join(_usage(usage))}" for model, usage in status.usage_by_model.items()
    ]


def token_counts(usage: Usage) -> str:
    """Return the tokens of prompts and of answers, and how many of them a provider's cache served."""
    unit = "token" if usage.input_tokens == 1 else "tokens"
    cached = usage.known("cached_input_tokens")
    served = f" ({cached:,.0f} cached)" if cached else ""
    into, out = (count_of(usage, name) for name in ("input_tokens", "output_tokens"))
    return f"{into} {unit} in{served}, {out} out"


def _kinds(errors: dict[ErrorKind, int]) -> list[str]:
    most = sorted(errors.items(), key=lambda item: (-item[1], item[0]))
    parts = [f"{kind.value} {count:,}" for kind, count in most[:_SHOWN_KINDS]]
    if len(most) > _SHOWN_KINDS:
        parts.append(f"{sum(count for _, count in most[_SHOWN_KINDS:]):,} of other kinds")
    return parts


def wait_hint(status: Status) -> str:
    """Return why a run with workers does not move; empty if it does."""
    return stop_hint(status) or pause_hint(status) or day_hint(status)


def stop_hint(status: Status) -> str:
    """Return what a run that was stopped waits for; empty if it was not, or has ended."""
    if not status.is_stopping:
        return ""
    if status.gathered or status.batches:
        return "stopping: what its batches have answered so far is awaited, for a minute at most"
    return "stopping: calls in flight end"


def day_hint(status: Status) -> str:
    """Return which budgets of the day are used up, and how long calls wait; empty if none is."""
    names = status.used_up
    if not names:
        return ""
    of = "" if names == ["*"] else f" for {' and '.join(names)}"
    return f"the budget of the day{of} is used up: its calls wait until 00:00 UTC"


def pause_hint(status: Status) -> str:
    """Return how a run that is paused goes on; empty if it is not paused."""
    is_paused = status.status is RunStatus.PAUSED
    return f"`fanout unpause {status.run_id}` lets it go on" if is_paused else ""
