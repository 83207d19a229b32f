"""The account of many trials: a table to read, and JSON to keep."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from faults.trial import Options, Report

__all__ = ["distribution", "markdown", "totals", "whole"]

_COLUMNS = {
    "seed": "seed",
    "faults": "faults",
    "branches": "branches",
    "outcomes": "outcomes",
    "lost": "lost",
    "failed": "failed otherwise",
    "duplicated": "duplicated outcomes",
    "aggregate": "aggregate right",
    "calls": "calls",
    "most": "in flight at most",
    "struck": "twice: on something struck",
    "unwritten": "of these answered, not written",
    "other": "twice: other",
    "again": "finished steps again",
    "hung": "hung",
    "worker_s": "recovery, worker (max s)",
    "server_s": "recovery, server (max s)",
    "seconds": "seconds",
}


def distribution(values: Sequence[float]) -> dict[str, float | int | None]:
    """Return count, minimum, median, 95th percentile and maximum of some seconds."""
    some = sorted(values)
    if not some:
        return {"count": 0, "min": None, "median": None, "p95": None, "max": None}
    at = {"min": 0, "median": len(some) // 2, "p95": int(len(some) * 0.95), "max": len(some) - 1}
    return {"count": len(some), **{name: round(some[index], 2) for name, index in at.items()}}


def _row(report: Report) -> dict[str, Any]:
    verdict = report.verdict
    assert verdict is not None  # noqa: S101 - a trial that ended has one
    return {
        "seed": report.seed,
        "faults": report.faults,
        "branches": report.branches,
        "outcomes": report.outcomes,
        "lost": report.lost,
        "failed": report.failed,
        "duplicated": report.duplicated,
        "aggregate": report.is_aggregate_right,
        "calls": verdict.calls,
        "most": report.most_in_flight,
        "struck": verdict.repeated_struck,
        "unwritten": verdict.repeated_unwritten,
        "other": verdict.repeated_other,
        "again": len(report.steps_again),
        "hung": report.is_hung,
        "worker_s": max(verdict.worker_recovery_s.values(), default=None),
        "server_s": max(verdict.server_recovery_s.values(), default=None),
        "seconds": report.seconds,
    }


def totals(reports: list[Report]) -> dict[str, Any]:
    """Return the sums over all trials, and the distributions of seconds to recover."""
    rows = [_row(report) for report in reports]
    summed = ["faults", "branches", "outcomes", "lost", "duplicated", "calls", "struck"]
    summed += ["unwritten", "other", "again", "hung"]
    failed: Counter[str] = Counter()
    for report in reports:
        failed.update(report.failed)
    verdicts = [report.verdict for report in reports if report.verdict]
    return {
        **{name: sum(row[name] for row in rows) for name in summed},
        "failed": dict(failed),
        "aggregate_wrong": sum(not row["aggregate"] for row in rows),
        "client_failures": sum(report.client_failures for report in reports),
        "worker_deaths": sum(len(report.worker_deaths) for report in reports),
        "faults_by_kind": dict(
            Counter(
                injury["kind"]
                for report in reports
                for injury in report.injuries
                if "skipped" not in injury
            )
        ),
        "call_recovery_s": distribution([s for v in verdicts for s in v.call_recovery_s]),
        "worker_recovery_s": distribution(
            [s for v in verdicts for s in v.worker_recovery_s.values()]
        ),
        "server_recovery_s": distribution(
            [s for v in verdicts for s in v.server_recovery_s.values()]
        ),
    }


def markdown(reports: list[Report]) -> str:
    """Return a row for each trial, and one for all."""
    rows = [_row(report) for report in reports]
    total = totals(reports)
    last = {**dict.fromkeys(_COLUMNS), **total, "seed": "all"}
    last["aggregate"] = not total["aggregate_wrong"]
    last["worker_s"] = total["worker_recovery_s"]["max"]
    last["server_s"] = total["server_recovery_s"]["max"]
    last["seconds"] = sum(row["seconds"] for row in rows)
    lines = [_line(_COLUMNS.values()), _line("---" for _ in _COLUMNS)]
    lines += [_line(_cell(row[name]) for name in _COLUMNS) for row in [*rows, last]]
    return "\n".join(lines)


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{kind} {count}" for kind, count in value.items()) or "0"
    return (
        f"{value:.1f}"
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else str(value)
    )


def whole(reports: list[Report], options: Options) -> dict[str, Any]:
    """Return all of it for JSON."""
    return {
        "options": msgspec.to_builtins(options),
        "totals": totals(reports),
        "schedules": msgspec.to_builtins(reports, str_keys=True),
        "table": markdown(reports),
    }
