"""The facts of a run and of a fleet as short texts, and as plain lines for a pipe."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fanout.cli.run_facts import Row, day_parts, lane_name, speed_parts
from fanout.core.records import RunStatus
from fanout.core.units import byte_size, clock, cost_of, known, plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fanout.cli.speed import Speed
    from fanout.core.fleet_records import WorkerRecord
    from fanout.observe.fleet import FleetStatus
    from fanout.runs.status import Status

__all__ = [
    "RUN_COLUMNS",
    "busiest",
    "busy_places",
    "capacity_lines",
    "capacity_rows",
    "fleet_line",
    "learnt_limits",
    "run_cells",
    "run_columns",
    "run_counts",
    "runs_lines",
    "seen",
]

_LABEL = 10
_LOAD_BAR = 10
_SILENT_S = 7.0
# The columns of a table of runs, and whether each is a number; the model is last, as it may be long.
RUN_COLUMNS = {
    "RUN": False, "CREATED": False, "STATUS": False, "DONE": True, "FAILED": True, "ELAPSED": True,
    "COST": True, "LEFT": True, "CACHED": True, "LANE": False, "CAP": True, "PRIORITY": True,
    "MODEL": False,
}  # fmt: skip
# Those that are left out if no run has any.
_RARE_COLUMNS = frozenset({"COST", "LEFT", "CACHED", "LANE", "CAP", "PRIORITY"})
_NO_WORKER = "none: start one with `fanout worker`"


def capacity_rows(fleet: FleetStatus, *, left: int | None = None) -> list[Row]:
    """Return the models whose calls wait, the queues, the server's memory, and the workers.

    ``left`` is the number of branches that wait for workers; by default, all in the queues.
    """
    if left is None:
        left = sum(queue.waiting for queue in fleet.queues)
    paused = _paused_models(fleet)
    workers = _workers(fleet, left=left)
    rows = [("queues", _queues(fleet)), ("memory", [_memory(fleet)]), ("workers", workers)]
    if fleet.day_budgets:
        rows.insert(0, ("budgets", _day_budgets(fleet)))
    learnt = learnt_limits(fleet)
    rows = [("limits", learnt), *rows] if learnt else rows
    return [("paused", paused), *rows] if paused else rows


def _day_budgets(fleet: FleetStatus) -> list[str]:
    """Return what is spent of the budgets of this day, by model."""
    parts = day_parts(fleet.day_budgets)
    return [*parts, f"the next day begins at 00:00 UTC, in {clock(fleet.day_left_s or 0.0)}"]


def learnt_limits(fleet: FleetStatus) -> list[str]:
    """Return the limits of models that the fleet has learnt from replies and refusals."""
    words = {model: limit.words for model, limit in sorted(fleet.limits.items())}
    return [f"{model} takes {those}" for model, those in words.items() if those]


def _workers(fleet: FleetStatus, *, left: int) -> list[str]:
    workers = fleet.workers
    if not workers:
        return [_NO_WORKER if left else "none"]
    busy = sum(map(busy_places, workers))
    parts = [f"{len(workers):,}", f"{busy:,} of {fleet.concurrency:,} places in use"]
    silent = sum(is_silent(worker, fleet.read_at) for worker in workers)
    if silent:
        parts.append(f"{silent:,} silent: dead, or cut off from the server")
    return parts


def capacity_lines(fleet: FleetStatus) -> list[str]:
    """Return the queues, the server's memory and all workers as plain lines."""
    lines = [f"{label:<{_LABEL}}{' · '.join(parts)}" for label, parts in capacity_rows(fleet)]
    longest = max((len(worker.name) for worker in fleet.workers), default=0)
    for worker in busiest(fleet.workers):
        busy, places = busy_places(worker), worker.concurrency
        load, age = f"{busy:,}/{places:,}", seen(worker, fleet.read_at)
        cells = [_bar(busy, places), f"{load:>9}", f"{worker.processed:,} done", f"seen {age}"]
        lines.append("  ".join([f"  {worker.name:<{max(8, longest)}}", *cells]))
    return lines


def _bar(part: int, whole: int) -> str:
    filled = min(_LOAD_BAR, _LOAD_BAR * part // whole) if whole else 0
    # Not rounded: only an idle worker has an empty bar, only a full one a full bar.
    filled = max(1, filled) if part else 0
    return f"[{'#' * filled}{'-' * (_LOAD_BAR - filled)}]"


def fleet_line(fleet: FleetStatus, speed: Speed) -> str:
    """Return the state of a fleet as one plain line."""
    busy = sum(map(busy_places, fleet.workers))
    workers = plural(len(fleet.workers), "worker", "workers")
    places = f"{busy:,} of {fleet.concurrency:,} places of {workers} in use"
    runs = " · ".join(run_counts(fleet))
    down = [
        f"{model} fails since {clock(limit.down_s)}"
        for model, limit in sorted(fleet.limits.items())
        if limit.down_s is not None
    ]
    over = [name for name, one in sorted(fleet.day_budgets.items()) if one.is_used_up]
    down += [f"budget of the day used up: {', '.join(over)}"] if over else []
    return " · ".join([f"runs: {runs}", *down, *speed_parts(speed), *_queues(fleet), places])


def runs_lines(rows: Sequence[tuple[Status, str]], *, has_head: bool = True) -> list[str]:
    """Return statuses and models of runs as plain lines in columns, with a header line first.

    Without a header, for programs, the columns are always the same: none is rare.
    """
    found = [run_cells(status, model) for status, model in rows]
    if not has_head:
        found = [{**cells, **dict.fromkeys(_RARE_COLUMNS, "")} for cells in found]
    padded = [
        _padded([name, *(cells[name] for cells in found)], is_number=RUN_COLUMNS[name])
        for name in run_columns(found)
    ]
    lines = ["  ".join(cells).rstrip() for cells in zip(*padded, strict=True)]
    return lines if has_head else lines[1:]


def _padded(cells: Sequence[str], *, is_number: bool) -> list[str]:
    width = max(map(len, cells))
    return [f"{cell:>{width}}" if is_number else f"{cell:<{width}}" for cell in cells]


def run_columns(rows: Sequence[dict[str, str]]) -> list[str]:
    """Return the columns of a table of runs, without the rare ones that are empty."""
    return [
        name for name in RUN_COLUMNS if name not in _RARE_COLUMNS or any(row[name] for row in rows)
    ]


def run_cells(status: Status, model: str) -> dict[str, str]:
    """Return a run as a row of a table: a cell for each of `RUN_COLUMNS`."""
    created = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(status.created_at))
    done = f"{status.done:,}/{status.total:,}{'+' if status.status is RunStatus.ENQUEUING else ''}"
    return {
        "RUN": status.run_id,
        "CREATED": created,
        "STATUS": status.status.value,
        "DONE": done,
        "FAILED": f"{status.failed:,}",
        "ELAPSED": clock(status.elapsed_s),
        "COST": cost_of(status.usage) if status.usage.known("cost_usd") else "",
        "LEFT": "" if status.budget is None else status.budget.left_words,
        "CACHED": f"{status.saved.calls:,}" if status.saved.calls else "",
        "LANE": lane_name(status),
        "CAP": known(status.max_workers) if status.max_workers else "",
        "PRIORITY": f"{status.priority:g}" if status.priority != 1 else "",
        "MODEL": model,
    }


def seen(worker: WorkerRecord, read_at: float) -> str:
    """Return the age of a worker's last heartbeat."""
    text = f"{clock(max(0.0, read_at - worker.seen_at))} ago"
    return f"{text}, silent" if is_silent(worker, read_at) else text


def busiest(workers: Sequence[WorkerRecord]) -> list[WorkerRecord]:
    """Return workers, those with most places in use first, and of these those with most branches."""
    return sorted(
        workers, key=lambda worker: (-busy_places(worker), -worker.in_flight, worker.name)
    )


def busy_places(worker: WorkerRecord) -> int:
    """Return how many places of a worker are in use: branches that wait have none."""
    # More than it has room for are at hand; and the two numbers are not of quite the same moment.
    return max(0, min(worker.in_flight - worker.waiting, worker.concurrency))


def is_silent(worker: WorkerRecord, read_at: float) -> bool:
    """Return whether a worker has missed several heartbeats, one every two seconds."""
    return 0 < worker.seen_at < read_at - _SILENT_S


def run_counts(fleet: FleetStatus) -> list[str]:
    """Return the number of runs with each status."""
    return [f"{count:,} {status.value}" for status, count in sorted(fleet.runs.items())] or ["none"]


def _paused_models(fleet: FleetStatus) -> list[str]:
    parts = []
    for model, limit in sorted(fleet.limits.items()):
        if limit.down_s is not None:
            until = f"next try in {clock(limit.blocked_s)}"
            parts.append(f"{model} fails since {clock(limit.down_s)}, {until}")
        elif limit.blocked_s > 0:
            parts.append(f"{model} asks to wait {clock(limit.blocked_s)}")
    return parts


def _queues(fleet: FleetStatus) -> list[str]:
    parts = []
    for queue in fleet.queues:
        age = "" if queue.oldest_s is None else f" (oldest {clock(queue.oldest_s)})"
        parts.append(f"{queue.name.rpartition('.')[2]} {queue.waiting:,}{age}")
    leases = fleet.leases
    age = "" if leases.oldest_s is None else f" (renewed {clock(leases.oldest_s)} ago)"
    parts.append(f"taken {leases.taken:,}{age}")
    if capped := fleet.window.waiting_for_permits:
        parts.append(f"{capped:,} wait for their run's cap")
    if gathered := fleet.window.gathered:
        parts.append(f"{gathered:,} wait for batches of providers")
    return parts


def _memory(fleet: FleetStatus) -> str:
    if fleet.memory is None:
        return "?"
    limit = fleet.memory.limit_bytes
    used = byte_size(fleet.memory.used_bytes)
    return f"{used} of {byte_size(limit)}" if limit else f"{used}, no limit"
