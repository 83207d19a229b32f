"""Views for a terminal: progress bars, tables and facts, in colour."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Group
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from fanout.cli.console import TerminalConsole
from fanout.cli.facts import (
    RUN_COLUMNS,
    busiest,
    busy_places,
    capacity_rows,
    run_cells,
    run_columns,
    run_counts,
    seen,
)
from fanout.cli.run_facts import run_rows, speed_parts
from fanout.core.records import RunStatus
from fanout.core.units import clock, percent
from fanout.doctor import State
from fanout.system.terminal import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console, ConsoleOptions, JustifyMethod, RenderableType, RenderResult

    from fanout.cli.run_facts import Row
    from fanout.cli.speed import Speed
    from fanout.doctor import Finding
    from fanout.observe.fleet import FleetStatus
    from fanout.runs.status import StageStatus, Status

__all__ = [
    "SHOWN_RUNS",
    "draw",
    "findings_view",
    "fleet_view",
    "progress_view",
    "run_view",
    "runs_table",
    "workers_view",
]

_SHOWN_WORKERS = 8
SHOWN_RUNS = 12
_LABEL = 8
_INDENT = (0, 0, 0, 2)
_LONGEST_BAR = 40
_SHORTEST_BAR = 6
_LOAD_BAR = 10
# Below this many columns there are no bars.
_NARROW = 50
# Below this many columns a table of runs leaves out when they were created.
_ROOMY = 80
_STYLES = {
    RunStatus.SUCCEEDED: "green",
    RunStatus.FAILED: "red",
    RunStatus.CANCELLED: "yellow",
    RunStatus.PAUSED: "yellow",
}
_ACTIVE = "cyan"
_FINDING_STYLES = {State.OK: "green", State.WARN: "yellow", State.FAIL: "red"}
_LABELS = {"errors": "red", "paused": "yellow", "note": "yellow"}


def draw(view: Callable[..., RenderableType], *values: object, **options: Any) -> None:
    """Draw values as one of these views on standard output, a terminal."""
    console = TerminalConsole(sys.stdout)
    console.print(view(*values, width=console.width, **options))


def progress_view(status: Status, parts: Sequence[str], hint: str, *, width: int) -> RenderableType:
    """Return a bar for each stage of a run, and its speed and tokens below."""
    rows: list[RenderableType] = [_stages(status, width), _joined(parts, width)]
    if hint:
        rows.append(Text(hint, "yellow"))
    return Group(*rows)


def run_view(
    status: Status,
    speed: Speed | None,
    fleet: FleetStatus | None,
    model: str,
    *,
    width: int,
    note: str = "",
) -> RenderableType:
    """Return the progress and the facts of a run, and the load of its fleet."""
    head = _line(
        (f"run {status.run_id}", "bold"),
        "  ",
        (status.status.value, _style(status)),
        f" · {clock(status.elapsed_s)}  {model}",
    )
    rows = run_rows(status, speed)
    if note:
        rows.append(("note", [note]))
    parts: list[RenderableType] = [head, _stages(status, width), _facts(rows, width)]
    if fleet is not None:
        parts.append(_capacity(fleet, left=status.total - status.done, width=width))
    return Group(*parts)


def fleet_view(
    fleet: FleetStatus, runs: Sequence[Status], speed: Speed, *, width: int
) -> RenderableType:
    """Return the state of a fleet; ``runs`` are its newest active runs."""
    bars = [
        _Bar(
            names=(_line(f"{run.run_id:<8}"), _line((run.status.value, _style(run)))),
            done=run.done,
            total=run.total,
            failed=run.failed,
            is_open=run.status is RunStatus.ENQUEUING,
        )
        for run in runs[:SHOWN_RUNS]
    ]
    parts: list[RenderableType] = [_facts([("runs", run_counts(fleet))], width)]
    if bars:
        parts.append(Padding(_bars(bars, width - _INDENT[-1]), _INDENT))
    if len(fleet.active) > len(bars):
        parts.append(f"  and {len(fleet.active) - len(bars):,} more")
    parts.append(_facts([("speed", speed_parts(speed))], width))
    parts.append(_capacity(fleet, width=width))
    return Group(*parts)


def workers_view(fleet: FleetStatus, *, width: int) -> RenderableType:
    """Return the queues, the server's memory, and all workers."""
    return _capacity(fleet, width=width, shown=len(fleet.workers))


def _capacity(
    fleet: FleetStatus, *, width: int, left: int | None = None, shown: int = _SHOWN_WORKERS
) -> RenderableType:
    parts: list[RenderableType] = [_facts(capacity_rows(fleet, left=left), width)]
    if fleet.workers:
        parts.append(Padding(_workers_table(fleet, shown, width), _INDENT))
    if len(fleet.workers) > shown:
        parts.append(f"  and {len(fleet.workers) - shown:,} more")
    return Group(*parts)


def _workers_table(fleet: FleetStatus, shown: int, width: int) -> Table:
    table = _table()
    table.add_column("WORKER")
    for name in ("PLACES", "DONE"):
        table.add_column(name, justify="right", no_wrap=True)
    has_bars = width >= _NARROW
    if has_bars:
        table.add_column("LOAD", width=_LOAD_BAR)
    table.add_column("SEEN", no_wrap=True)
    for worker in busiest(fleet.workers)[:shown]:
        busy, places = busy_places(worker), worker.concurrency
        age = seen(worker, fleet.read_at)
        table.add_row(
            _line(worker.name),
            f"{busy:,}/{places:,}",
            f"{worker.processed:,}",
            *([_TrackedBar(places or 1, busy, complete_style=_ACTIVE)] if has_bars else []),
            Text(age, "red" if age.endswith("silent") else ""),
        )
    return table


def runs_table(rows: Sequence[tuple[Status, str]], *, width: int) -> RenderableType:
    """Return statuses and models of runs as a table with a header."""
    table = _table()
    found = [run_cells(status, model) for status, model in rows]
    shown = [name for name in run_columns(found) if name != "CREATED" or width >= _ROOMY]
    for name in shown:
        justify: JustifyMethod = "right" if RUN_COLUMNS[name] else "left"
        table.add_column(name, justify=justify, no_wrap=name != "MODEL")
    for (status, _), cells in zip(rows, found, strict=True):
        styles = {
            "STATUS": _style(status),
            "FAILED": "red" if status.failed else "",
        }
        table.add_row(*(_line((cells[name], styles.get(name, ""))) for name in shown))
    return table


def findings_view(findings: Sequence[Finding], *, width: int) -> RenderableType:  # noqa: ARG001 - as all views
    """Return the findings of a doctor with their advice."""
    table = Table.grid(padding=(0, 1))
    for _ in ("state", "check"):
        table.add_column(no_wrap=True)
    table.add_column()
    for finding in findings:
        style = _FINDING_STYLES[finding.state]
        table.add_row(Text(f"{finding.state:<4}", style), finding.check, finding.found)
        if finding.advice is not None:
            table.add_row("", "", f"-> {finding.advice}")
    return table


def _facts(rows: Sequence[Row], width: int) -> RenderableType:
    table = Table.grid(padding=(0, 1))
    table.add_column(width=_LABEL, no_wrap=True)
    table.add_column()
    for label, parts in rows:
        table.add_row(Text(label, _LABELS.get(label, "dim")), _joined(parts, width - _LABEL - 2))
    return table


def _joined(parts: Sequence[str], width: int) -> str:
    """Join short texts into as few lines as possible; break lines only between texts."""
    lines: list[str] = []
    for part in map(one_line, parts):
        longer = f"{lines[-1]} · {part}" if lines else part
        if lines and cell_len(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(part)
    return "\n".join(lines)


def _stages(status: Status, width: int) -> RenderableType:
    bars = [
        _Bar(
            # The first stage is the map; a retry that reduces again adds stages.
            names=(_line(f"reduce {number}" if number else "branches"),),
            done=stage.done,
            total=stage.total,
            failed=stage.failed,
            is_open=_is_open(status, stage),
        )
        for number, stage in enumerate(status.stages)
    ]
    return _bars(bars, width)


def _is_open(status: Status, stage: StageStatus) -> bool:
    """Return whether a stage still gets branches: it is written while the one before it goes on."""
    if stage.stage == 0:
        return status.status is RunStatus.ENQUEUING
    return stage.stage > status.stage and not status.status.has_ended


@dataclass(frozen=True, kw_only=True, slots=True)
class _Bar:
    """The progress of a run or of a stage; while it is open, its total still grows."""

    names: tuple[Text, ...]
    done: int
    total: int
    failed: int
    is_open: bool

    def share(self) -> Text:
        return Text("" if self.is_open else percent(self.done, self.total), justify="right")

    def counts(self) -> Text:
        text = _line(f"{self.done:,}/{self.total:,}{'+' if self.is_open else ''}")
        return text.append(" · ").append(f"{self.failed:,} failed", "red") if self.failed else text

    def drawn(self, width: int) -> _TrackedBar:
        return _TrackedBar(
            self.total or 1, self.done, width=width, pulse=self.is_open, pulse_style=_ACTIVE,
            complete_style=_ACTIVE, finished_style="green",
        )  # fmt: skip


class _TrackedBar(ProgressBar):
    """A bar that shows what is left without colours, too: as a dashed line."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        drawn = super().__rich_console__(console, options)
        if console.color_system is not None:
            yield from drawn
            return
        track = "." if options.ascii_only else "┄"
        width = min(self.width or options.max_width, options.max_width)
        text = "".join(segment.text for segment in drawn if isinstance(segment, Segment))
        yield Segment(text.replace(" ", track).ljust(width, track))


def _bars(bars: Sequence[_Bar], width: int) -> Table:
    cells = [(*bar.names, bar.share(), bar.counts()) for bar in bars]
    rest = sum(max(text.cell_len for text in column) + 2 for column in zip(*cells, strict=True))
    room = min(_LONGEST_BAR, width - rest)
    table = Table.grid(padding=(0, 1))
    for bar, (*names, share, counts) in zip(bars, cells, strict=True):
        drawn = [bar.drawn(room)] if room >= _SHORTEST_BAR else []
        table.add_row(*names, *drawn, share, counts)
    return table


def _style(status: Status) -> str:
    return _STYLES.get(status.status, _ACTIVE)


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")


def _line(*parts: str | tuple[str, str]) -> Text:
    """Return styled texts as one line, cut with an ellipsis if it is too long."""
    styled = [(part, "") if isinstance(part, str) else part for part in parts]
    shown = [(one_line(text), style) for text, style in styled]
    return Text.assemble(*shown, no_wrap=True, overflow="ellipsis")
