"""What ``fanout watch`` and ``fanout workers`` show: what was seen, as lines of a given width."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fanout.cli.speed import eta_s
from fanout.core.records import RunStatus
from fanout.core.units import clock, known, plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fanout.cli.speed import Speed
    from fanout.core.latency import Latency
    from fanout.core.records import ErrorKind, Usage
    from fanout.observe.fleet import FleetStatus
    from fanout.runs.results import StageStatus, Status
    from fanout.stores import WorkerRecord

__all__ = [
    "SHOWN_RUNS",
    "capacity_lines",
    "clipped",
    "fleet_line",
    "fleet_lines",
    "run_lines",
    "runs_lines",
    "workers_lines",
]

_LABEL = 10
_INDENT = 2
_LONGEST_BAR = 40
_SHORTEST_BAR = 6
_LOAD_BAR = 10
_NARROW = 60
_SHOWN_WORKERS = 8
SHOWN_RUNS = 12
_SHOWN_KINDS = 6
_MB = 1_000_000
# The model last: it may be long.
_HEAD = ("RUN", "CREATED", "STATUS", "DONE", "FAILED", "ELAPSED", "MODEL")
_NUMBERS = {"DONE", "FAILED", "ELAPSED"}
_SILENT_S = 7.0
_NO_WORKER = "none: start one with `fanout worker`"


def run_lines(
    status: Status, speed: Speed, fleet: FleetStatus | None, model: str, *, width: int = 80
) -> list[str]:
    """Return a frame about one run."""
    head = f"run {status.run_id}  {status.status.value} · {clock(status.elapsed_s)}  {model}"
    lines = [clipped(head.rstrip(), width), *_stages(status, width)]
    if not status.status.has_ended:
        lines += _row("speed", [*_speed(speed), *_eta(status, speed)], width)
    lines += _row("latency", _latency(status.latency), width)
    lines += _row("usage", _usage(status.usage), width)
    again = _again(status)
    if again > 0:
        lines += _row("retries", [f"{again:,} calls were made again"], width)
    if status.errors:
        lines += _row("errors", _kinds(status.errors), width)
    if fleet is not None:
        left = status.total - status.done
        lines += _paused_models(fleet, width)
        lines += _queues(fleet, width)
        lines += workers_lines(fleet.workers, read_at=fleet.read_at, left=left, width=width)
    return lines


def fleet_lines(
    fleet: FleetStatus, runs: Sequence[Status], speed: Speed, *, width: int = 80
) -> list[str]:
    """Return a frame about all that a fleet is doing; ``runs`` are the newest of those active."""
    lines = _row("runs", _run_counts(fleet), width)
    shown = runs[:SHOWN_RUNS]
    shares = [_share(run.done, run.total, run.failed, _more(run)) for run in shown]
    bars = _bar_width(shares, width - _INDENT - 21)
    for run, share in zip(shown, shares, strict=True):
        bar = _bar(run.done, run.total, bars)
        lines.append(clipped(f"  {run.run_id:<8}  {run.status.value:<9}  {bar}{share}", width))
    if len(fleet.active) > len(shown):
        lines.append(f"  and {len(fleet.active) - len(shown):,} more")
    lines += _row("speed", _speed(speed), width)
    return [*lines, *capacity_lines(fleet, width=width)]


def runs_lines(rows: Sequence[tuple[Status, str]], *, width: int = 80) -> list[str]:
    """Return a table of runs, with a head, of their statuses and models."""
    table = [_HEAD, *(_run_cells(status, model) for status, model in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    # Numbers end where their column ends.
    aligned = (
        "  ".join(
            f"{cell:>{size}}" if name in _NUMBERS else f"{cell:<{size}}"
            for name, cell, size in zip(_HEAD, cells, widths, strict=True)
        )
        for cells in table
    )
    return [clipped(line.rstrip(), width) for line in aligned]


def _run_cells(status: Status, model: str) -> tuple[str, ...]:
    created = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(status.created_at))
    done = f"{status.done:,}/{status.total:,}{_more(status)}"
    ended = clock(status.elapsed_s)
    return status.run_id, created, status.status.value, done, f"{status.failed:,}", ended, model


def capacity_lines(
    fleet: FleetStatus, *, shown: int = _SHOWN_WORKERS, width: int = 80
) -> list[str]:
    """Return the queues, the server's memory and the workers."""
    left = sum(queue.waiting for queue in fleet.queues)
    return [
        *_paused_models(fleet, width),
        *_queues(fleet, width),
        *_row("memory", _memory(fleet), width),
        *workers_lines(fleet.workers, read_at=fleet.read_at, left=left, shown=shown, width=width),
    ]


def fleet_line(fleet: FleetStatus, speed: Speed) -> str:
    """Return what a fleet is doing as one line."""
    busy = sum(map(_busy, fleet.workers))
    workers = plural(len(fleet.workers), "worker", "workers")
    places = f"{busy:,} of {fleet.concurrency:,} places of {workers} in use"
    runs = " · ".join(_run_counts(fleet))
    down = [
        f"{model} fails since {clock(limit.down_s)}"
        for model, limit in sorted(fleet.limits.items())
        if limit.down_s is not None
    ]
    return " · ".join([f"runs: {runs}", *down, *_speed(speed), *_queue_parts(fleet), places])


def workers_lines(
    workers: Sequence[WorkerRecord],
    *,
    read_at: float,
    left: int = 0,
    shown: int = _SHOWN_WORKERS,
    width: int = 80,
) -> list[str]:
    """Return the workers with their load, the fullest first; ``left`` is what waits for them."""
    if not workers:
        return _row("workers", [_NO_WORKER if left else "none"], width)
    busy = sum(map(_busy, workers))
    places = sum(worker.concurrency for worker in workers)
    parts = [f"{len(workers):,}", f"{busy:,} of {places:,} places in use"]
    silent = sum(_is_silent(worker, read_at) for worker in workers)
    if silent:
        parts.append(f"{silent:,} silent: dead, or cut off from the server")
    fullest = sorted(workers, key=lambda worker: (-worker.in_flight, worker.name))[:shown]
    cells = [_cells(worker, read_at, has_bar=width >= _NARROW) for worker in fullest]
    rest = max(sum(map(len, row)) + 2 * len(row) for row in cells)
    longest = max(len(worker.name) for worker in fullest)
    names = max(8, min(longest, width - _INDENT - rest))
    lines = _row("workers", parts, width)
    for worker, row in zip(fullest, cells, strict=True):
        name = clipped(worker.name, names)
        lines.append(clipped("  ".join([f"  {name:<{names}}", *row]), width))
    if len(workers) > len(fullest):
        lines.append(f"  and {len(workers) - len(fullest):,} more")
    return lines


def _cells(worker: WorkerRecord, read_at: float, *, has_bar: bool) -> list[str]:
    load = f"{_busy(worker):,}/{worker.concurrency:,}"
    seen = f"seen {clock(max(0.0, read_at - worker.seen_at))} ago"
    if _is_silent(worker, read_at):
        seen += ", silent"
    bar = [_bar(_busy(worker), worker.concurrency, _LOAD_BAR).rstrip()] if has_bar else []
    return [*bar, f"{load:>9}", f"{worker.processed:,} done", seen]


def _busy(worker: WorkerRecord) -> int:
    """Return how many places of a worker are taken: what it has begun beyond them waits for one."""
    return min(worker.in_flight, worker.concurrency)


def _is_silent(worker: WorkerRecord, read_at: float) -> bool:
    """Say whether a worker has missed some of its signs of life, one every two seconds."""
    return 0 < worker.seen_at < read_at - _SILENT_S


def clipped(text: str, width: int) -> str:
    """Return a text that is no longer than ``width``, and shows where it was cut."""
    return text if len(text) <= width else f"{text[: max(0, width - 1)]}~"


def _row(label: str, parts: Sequence[str], width: int) -> list[str]:
    """Return a label and what belongs to it, on as many lines as that takes."""
    lines = [f"{label:<{_LABEL}}{parts[0]}"]
    for part in parts[1:]:
        longer = f"{lines[-1]} · {part}"
        if len(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(f"{'':<{_LABEL}}{part}")
    return [clipped(line, width) for line in lines]


def _stages(status: Status, width: int) -> list[str]:
    shares = [_share(s.done, s.total, s.failed, _more(status, s)) for s in status.stages]
    bars = _bar_width(shares, width - _LABEL)
    lines = []
    for number, (stage, share) in enumerate(zip(status.stages, shares, strict=True)):
        # The numbers of stages go on when a retry makes the aggregate again; people count from 1.
        name = f"reduce {number}" if number else "branches"
        lines.append(f"{name:<{_LABEL}}{_bar(stage.done, stage.total, bars)}{share}")
    return [clipped(line, width) for line in lines]


def _more(status: Status, stage: StageStatus | None = None) -> str:
    is_open = status.status is RunStatus.ENQUEUING
    return "+" if is_open and (stage is None or stage.stage == 0) else ""


def _bar_width(shares: Sequence[str], room: int) -> int:
    """Return the width that bars can have in front of all these texts."""
    return min(_LONGEST_BAR, room - max((len(share) for share in shares), default=0) - 3)


def _bar(part: int, whole: int, width: int) -> str:
    if width < _SHORTEST_BAR:
        return ""
    # Neither is rounded: an empty bar says that nothing is done, a full one that all is.
    filled = min(width, width * part // whole) if whole else 0
    filled = max(1, filled) if part else 0
    return f"[{'#' * filled}{'-' * (width - filled)}] "


def _share(done: int, total: int, failed: int, more: str) -> str:
    # Cut and not rounded: 99.96 % is not all of it.
    percent = f" {1000 * done // total / 10:.1f}%" if total and not more else ""
    parts = f"{done:,}/{total:,}{more}{percent}"
    return f"{parts} · {failed:,} failed" if failed else parts


def _speed(speed: Speed) -> list[str]:
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


def _latency(latency: Latency) -> list[str]:
    shown = {f"p{share}": latency.percentile_s(share / 100) for share in (50, 90, 99)}
    return [f"{name} {_seconds(value)}" for name, value in shown.items()]


def _seconds(value: float | None) -> str:
    return "?" if value is None else f"{value:.3g} s"


def _usage(usage: Usage) -> list[str]:
    cost = "?" if usage.cost_usd is None else f"${usage.cost_usd:,.4f}"
    tokens = f"{known(usage.input_tokens)} tokens in, {known(usage.output_tokens)} out"
    return [f"{usage.calls:,} calls", tokens, f"cost {cost}"]


def _again(status: Status) -> int:
    """Return how many calls of the branches that have ended were made again."""
    return status.usage.calls - sum(stage.done for stage in status.stages)


def _kinds(errors: dict[ErrorKind, int]) -> list[str]:
    most = sorted(errors.items(), key=lambda item: (-item[1], item[0]))
    parts = [f"{kind.value} {count:,}" for kind, count in most[:_SHOWN_KINDS]]
    if len(most) > _SHOWN_KINDS:
        parts.append(f"{sum(count for _, count in most[_SHOWN_KINDS:]):,} of other kinds")
    return parts


def _run_counts(fleet: FleetStatus) -> list[str]:
    return [f"{count:,} {status.value}" for status, count in sorted(fleet.runs.items())] or ["none"]


def _paused_models(fleet: FleetStatus, width: int) -> list[str]:
    """Return which models are left alone for now, and for how long; nothing where none is."""
    parts = []
    for model, limit in sorted(fleet.limits.items()):
        if limit.down_s is not None:
            until = f"next try in {clock(limit.blocked_until)}"
            parts.append(f"{model} fails since {clock(limit.down_s)}, {until}")
        elif limit.blocked_until > 0:
            parts.append(f"{model} asks to wait {clock(limit.blocked_until)}")
    return _row("paused", parts, width) if parts else []


def _queues(fleet: FleetStatus, width: int) -> list[str]:
    return _row("queues", _queue_parts(fleet), width)


def _queue_parts(fleet: FleetStatus) -> list[str]:
    parts = []
    for queue in fleet.queues:
        age = "" if queue.oldest_s is None else f" (oldest {clock(queue.oldest_s)})"
        parts.append(f"{queue.name.rpartition('.')[2]} {queue.waiting:,}{age}")
    leases = fleet.leases
    age = "" if leases.oldest_s is None else f" (renewed {clock(leases.oldest_s)} ago)"
    return [*parts, f"taken {leases.taken:,}{age}"]


def _memory(fleet: FleetStatus) -> list[str]:
    if fleet.memory is None:
        return ["?"]
    limit = fleet.memory.limit_bytes
    used = f"{fleet.memory.used_bytes / _MB:,.1f} MB"
    return [f"{used} of {limit / _MB:,.1f} MB" if limit else f"{used}, no limit"]
