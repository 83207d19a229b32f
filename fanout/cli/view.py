"""What ``fanout watch`` shows: frames of lines, drawn over each other."""

from __future__ import annotations

import os
import shutil
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from fanout.cli.progress import clock
from fanout.runs import RunStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fanout.fleet import FleetStatus
    from fanout.latency import Latency
    from fanout.results import Status
    from fanout.runs import ErrorKind, Usage
    from fanout.stores import WorkerRecord

__all__ = ["Meter", "Screen", "Speed", "fleet_lines", "run_lines", "workers_lines"]

# The speed is that of the last seconds: an average from the start hides that calls have stalled.
_WINDOW_S = 10.0
_LEAST_S = 0.2
_LABEL = 10
_BAR = 24
_SHOWN_WORKERS = 8
_SHOWN_RUNS = 12
_SHOWN_KINDS = 6
_MIN_WIDTH = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """How fast it goes; None where that is not known yet.

    Attributes:
        branches: Branches that end in a second.
        calls: Calls in a second.
        input_tokens: Tokens of prompts in a second.
        output_tokens: Tokens of answers in a second.
    """

    branches: float | None = None
    calls: float | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """Return it as JSON-able values, per second."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {f"{n}_per_s": v if v is None else round(v, 2) for n, v in values.items()}


class Meter:
    """Measures the speed over the last seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, tuple[int | None, ...]]] = deque()

    def see(self, done: int, usage: Usage, *, now: float | None = None) -> Speed:
        """Take note of what has been done so far, and return how fast that goes."""
        now = time.monotonic() if now is None else now
        self._seen.append((now, (done, usage.calls, usage.input_tokens, usage.output_tokens)))
        while len(self._seen) > 2 and now - self._seen[0][0] > _WINDOW_S:  # noqa: PLR2004 - two ends
            self._seen.popleft()
        (since, first), (_, last) = self._seen[0], self._seen[-1]
        if now - since < _LEAST_S:
            return Speed()
        rates = (_rate(a, b, now - since) for a, b in zip(first, last, strict=True))
        return Speed(**dict(zip(Speed.__slots__, rates, strict=True)))


def _rate(first: int | None, last: int | None, seconds: float) -> float | None:
    # A retry takes failed branches out of the count again.
    return None if last is None else max(0, last - (first or 0)) / seconds


def run_lines(status: Status, speed: Speed, fleet: FleetStatus | None, model: str) -> list[str]:
    """Return a frame about one run."""
    ending = "" if status.status.has_ended else f" · {clock(status.elapsed_s)}"
    lines = [f"run {status.run_id}  {status.status.value}{ending}  {model}".rstrip()]
    for stage in status.stages:
        name = "branches" if stage.stage == 0 else f"reduce {stage.stage}"
        more = "+" if stage.stage == 0 and status.status is RunStatus.ENQUEUING else ""
        lines.append(_row(name, _share(stage.done, stage.total, stage.failed, more)))
    lines.append(_row("speed", _speed(speed, status)))
    lines.append(_row("latency", _latency(status.latency)))
    lines.append(_row("tokens", _tokens(status.usage)))
    if status.errors:
        lines.append(_row("errors", _kinds(status.errors)))
    if fleet is not None and not status.status.has_ended:
        lines += _queue_rows(fleet)
        lines += workers_lines(fleet.workers, left=status.total - status.done)
    return lines


def fleet_lines(fleet: FleetStatus, runs: Sequence[Status], speed: Speed) -> list[str]:
    """Return a frame about all that a fleet is doing."""
    count = f"{sum(fleet.runs.values())} in progress" if fleet.runs else "none in progress"
    lines = [_row("runs", count)]
    for status in runs[:_SHOWN_RUNS]:
        share = _share(status.done, status.total, status.failed, "")
        lines.append(f"  {status.run_id}  {status.status.value:<9}  {share}")
    if len(runs) > _SHOWN_RUNS:
        lines.append(f"  and {len(runs) - _SHOWN_RUNS} more")
    lines.append(_row("speed", _speed(speed, None)))
    lines += _queue_rows(fleet)
    left = sum(queue.waiting for queue in fleet.queues)
    return [*lines, *workers_lines(fleet.workers, left=left)]


def workers_lines(
    workers: Sequence[WorkerRecord], *, left: int = 0, shown: int = _SHOWN_WORKERS
) -> list[str]:
    """Return the workers with their load, the fullest first; ``left`` is what waits for them."""
    if not workers:
        hint = "none: start one with `fanout worker`" if left else "none"
        return [_row("workers", hint)]
    busy = sum(worker.in_flight for worker in workers)
    places = sum(worker.concurrency for worker in workers)
    lines = [_row("workers", f"{len(workers):,}, {busy:,} of {places:,} places in use")]
    fullest = sorted(workers, key=lambda worker: (-worker.in_flight, worker.name))
    width = max(len(worker.name) for worker in fullest[:shown])
    for worker in fullest[:shown]:
        load = f"{worker.in_flight:,}/{worker.concurrency:,}"
        bar = _bar(worker.in_flight, worker.concurrency, 10)
        lines.append(f"  {worker.name:<{width}}  {bar} {load:>9}  {worker.processed:,} done")
    if len(workers) > shown:
        lines.append(f"  and {len(workers) - shown} more")
    return lines


def _row(label: str, text: str) -> str:
    return f"{label:<{_LABEL}}{text}"


def _bar(part: int, whole: int, width: int = _BAR) -> str:
    filled = round(width * part / whole) if whole else 0
    return f"[{'#' * min(width, filled)}{'-' * max(0, width - filled)}]"


def _share(done: int, total: int, failed: int, more: str) -> str:
    percent = f" {done / total:.1%}" if total and not more else ""
    parts = f"{_bar(done, total)} {done:,}/{total:,}{more}{percent}"
    return f"{parts} · {failed:,} failed" if failed else parts


def _speed(speed: Speed, status: Status | None) -> str:
    if speed.calls is None:
        return "?"
    parts = [f"{speed.calls:,.1f} calls/s"]
    if speed.input_tokens is not None and speed.output_tokens is not None:
        parts.append(f"{speed.input_tokens:,.0f} tokens/s in, {speed.output_tokens:,.0f} out")
    if status is not None and speed.branches and status.status is RunStatus.RUNNING:
        left = status.total - status.done
        if left:
            parts.append(f"ETA {clock(left / speed.branches)}")
    return " · ".join(parts)


def _latency(latency: Latency) -> str:
    shown = {f"p{share}": latency.percentile_s(share / 100) for share in (50, 90, 99)}
    return " · ".join(f"{name} {_seconds(value)}" for name, value in shown.items())


def _seconds(value: float | None) -> str:
    return "?" if value is None else f"{value:.3g} s"


def _tokens(usage: Usage) -> str:
    cost = "?" if usage.cost_usd is None else f"${usage.cost_usd:,.4f}"
    return f"{_known(usage.input_tokens)} in, {_known(usage.output_tokens)} out · cost {cost}"


def _known(count: int | None) -> str:
    return "?" if count is None else f"{count:,}"


def _kinds(errors: dict[ErrorKind, int]) -> str:
    most = sorted(errors.items(), key=lambda item: (-item[1], item[0]))
    parts = [f"{kind.value} {count:,}" for kind, count in most[:_SHOWN_KINDS]]
    if len(most) > _SHOWN_KINDS:
        parts.append(f"{sum(count for _, count in most[_SHOWN_KINDS:]):,} of other kinds")
    return " · ".join(parts)


def _queue_rows(fleet: FleetStatus) -> list[str]:
    parts = []
    for queue in fleet.queues:
        age = "" if queue.oldest_s is None else f" (oldest {clock(queue.oldest_s)})"
        parts.append(f"{queue.name.rpartition('.')[2]} {queue.waiting:,}{age}")
    return [_row("queues", " · ".join([*parts, f"taken {fleet.leases.taken:,}"]))]


class Screen:
    """Draws frames over each other on a terminal, without taking all of it.

    Args:
        stream: Where to draw.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._height = 0

    @staticmethod
    def is_fit(stream: TextIO) -> bool:
        """Say whether frames can be drawn there at all."""
        return stream.isatty() and os.environ.get("TERM") not in {None, "", "dumb"}

    def draw(self, lines: Iterable[str]) -> None:
        """Put a frame in the place of the one before."""
        size = shutil.get_terminal_size()
        # A line that wraps, or a frame that scrolls, could not be drawn over.
        width = max(_MIN_WIDTH, size.columns) - 1
        shown = [line[:width] for line in lines][: max(1, size.lines - 1)]
        self._stream.write("\n".join([self._back() + shown[0], *shown[1:], ""]))
        self._stream.flush()
        self._height = len(shown)

    def clear(self) -> None:
        """Take the frame away."""
        self._stream.write(self._back())
        self._stream.flush()
        self._height = 0

    def _back(self) -> str:
        return f"\x1b[{self._height}F\x1b[J" if self._height else ""
