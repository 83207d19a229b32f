"""Draws the results of the benchmarks as SVG.

    .venv-peers/bin/python benchmarks/plots.py [--results benchmarks/results] [--out docs/images]

A bar shows the median of the rounds, its line the minimum and maximum. Plots without a result file
are left out.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROOT = Path(__file__).resolve().parents[1]
_OURS, _THEIRS, _INK, _GRID = "#2f6fde", "#9aa5b1", "#1f2933", "#e4e7eb"
_ROLES = {"workers": _OURS, "server": "#f0883e", "client": "#57a773"}
_MAX_BYTES = 60_000
_SUITES = {
    "zero": "Calls that are answered at once",
    "second": "Calls of one second, {in_flight} in flight, {workers} worker",
    "thousand": "Calls of one second, {in_flight:,} in flight, {workers} workers",
    "tail": "Latencies with a long tail, {in_flight} in flight, {workers} worker",
}
_NOTE = "median, least and most of {rounds} rounds of {calls:,} calls; {cores} cores, {cpu}"
# Figure, title, factor, format of its labels.
_PANELS = {
    "zero": (("calls_per_s", "calls/s", 1, "{:,.0f}"),),
    "others": (("share_of_ideal", "% of the ideal", 100, "{:.1f}"),),
}
_CPU = ("cpu_ms_per_call", "ms of CPU a call", 1, "{:.2f}")
_MEMORY = ("peak_pss_mb", "MB at the most", 1, "{:,.0f}")


def _style() -> None:
    plt.rcParams.update(
        {
            # Keep text as text (small and searchable), and write the same file each time.
            "svg.fonttype": "none",
            "svg.hashsalt": "fanout",
            "font.family": "sans-serif",
            "font.size": 9,
            "text.color": _INK,
            "axes.labelcolor": _INK,
            "axes.edgecolor": _GRID,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "xtick.color": _INK,
            "ytick.color": _INK,
            "axes.grid": True,
            "grid.color": _GRID,
            "axes.axisbelow": True,
            "axes.titlesize": 9,
            "figure.facecolor": "white",
        }
    )


def _errors(spreads: Sequence[dict[str, float]], factor: float = 1) -> list[list[float]]:
    low = [(each["median"] - each["min"]) * factor for each in spreads]
    high = [(each["max"] - each["median"]) * factor for each in spreads]
    return [low, high]


def _bars(
    axes: Axes, names: list[str], spreads: list[dict[str, float]], panel: tuple[Any, ...]
) -> None:
    _, title, factor, form = panel
    medians = [each["median"] * factor for each in spreads]
    colours = [_OURS if name.startswith("fanout") else _THEIRS for name in names]
    axes.barh(names, medians, color=colours, height=0.65)
    axes.errorbar(
        medians,
        range(len(names)),
        xerr=_errors(spreads, factor),
        fmt="none",
        ecolor=_INK,
        elinewidth=0.8,
        capsize=2,
    )
    end = max(each["max"] * factor for each in spreads)
    for place, (median, each) in enumerate(zip(medians, spreads, strict=True)):
        at = each["max"] * factor + 0.015 * end
        axes.text(at, place, form.format(median), va="center", fontsize=8)
    axes.set_xlim(0, end * 1.18)
    axes.set_title(title, loc="left")
    axes.grid(visible=False, axis="y")
    axes.tick_params(length=0)


def _compare(result: dict[str, Any]) -> Figure:
    suite, plan = result["suite"], result["plan"]
    panels = [*_PANELS.get(suite, _PANELS["others"]), _CPU, _MEMORY]
    first = panels[0][0]
    done = {
        name: contender["summary"]
        for name, contender in result["contenders"].items()
        if first in contender["summary"]
    }
    # The best is on top.
    names = sorted(done, key=lambda name: done[name][first]["median"])
    figure, row = plt.subplots(
        1, len(panels), sharey=True, figsize=(10, 1.3 + 0.3 * len(names)), layout="constrained"
    )
    for axes, panel in zip(row, panels, strict=True):
        _bars(axes, names, [done[name][panel[0]] for name in names], panel)
    figure.suptitle(_SUITES[suite].format(**plan), x=0.01, ha="left", weight="bold")
    machine = result["machine"]
    note = _NOTE.format(
        rounds=result["rounds"], calls=plan["calls"], cores=machine["cores"], cpu=machine["cpu"]
    )
    figure.supxlabel(note, fontsize=7.5, x=0.01, ha="left")
    return figure


def _label(value: float) -> str:
    return f"{value:,g}"


def _columns(axes: Axes, labels: list[str], spreads: list[dict[str, float]], title: str) -> None:
    medians = [each["median"] for each in spreads]
    axes.bar(labels, medians, color=_OURS, width=0.6)
    axes.errorbar(
        labels, medians, yerr=_errors(spreads), fmt="none", ecolor=_INK, elinewidth=0.8, capsize=2
    )
    axes.set_title(title, loc="left")
    axes.grid(visible=False, axis="x")
    axes.tick_params(length=0)


def _growth(result: dict[str, Any]) -> Figure:
    values = result["values"]
    labels = [_label(each["value"]) for each in values]
    summaries = [each["summary"] for each in values]
    figure, (speed, cost) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    _columns(speed, labels, [each["branches_per_s"] for each in summaries], "branches/s")
    base = [0.0] * len(labels)
    for role, colour in _ROLES.items():
        parts = [each["cpu_ms_per_branch"][role]["median"] for each in summaries]
        cost.bar(labels, parts, bottom=base, color=colour, width=0.6, label=role)
        base = [low + part for low, part in zip(base, parts, strict=True)]
    cost.set_title("ms of CPU a branch", loc="left")
    cost.grid(visible=False, axis="x")
    cost.tick_params(length=0)
    cost.legend(frameon=False, fontsize=8)
    figure.supxlabel(result["what"], fontsize=9)
    return figure


def _profile(result: dict[str, Any]) -> Figure:
    steps = {name: each for name, each in result["steps"].items() if each["share"] > 0}
    names = sorted(steps, key=lambda name: steps[name]["cpu_ms_per_branch"])
    figure, axes = plt.subplots(figsize=(7, 0.9 + 0.28 * len(names)), layout="constrained")
    costs = [steps[name]["cpu_ms_per_branch"] for name in names]
    axes.barh(names, costs, color=_OURS, height=0.65)
    for place, (name, cost) in enumerate(zip(names, costs, strict=True)):
        text = f"{cost:.3f}  ({steps[name]['share']:.0%})"
        axes.text(cost + 0.01 * max(costs), place, text, va="center", fontsize=8)
    axes.set_xlim(0, max(costs) * 1.2)
    axes.set_title("ms of a worker's CPU a branch, by step", loc="left")
    axes.grid(visible=False, axis="y")
    axes.tick_params(length=0)
    return figure


_KINDS = {"compare-*.json": _compare, "growth-*.json": _growth, "profile_branch*.json": _profile}


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(
        path, bbox_inches="tight", pad_inches=0.08, metadata={"Date": None, "Creator": None}
    )
    plt.close(figure)
    # Remove trailing blanks and invisible digits.
    text = re.sub(r"[ \t]+$", "", path.read_text(), flags=re.MULTILINE)
    path.write_text(re.sub(r"(\d\.\d{3})\d+", r"\1", text))
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise SystemExit(f"{path} has {size} bytes: more than {_MAX_BYTES}")
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=_ROOT / "benchmarks/results")
    parser.add_argument("--out", type=Path, default=_ROOT / "docs/images")
    options = parser.parse_args()
    _style()
    options.out.mkdir(parents=True, exist_ok=True)
    for pattern, draw in _KINDS.items():
        for path in sorted(options.results.glob(pattern)):
            figure = draw(json.loads(path.read_text()))
            _save(figure, options.out / f"{path.stem}.svg")


if __name__ == "__main__":
    main()
