"""Draws the results of benchmarks/million.py: memory and throughput over time.

    python benchmarks/plot_million.py [benchmarks/results/million-1000000.json] [--out docs/images]

Needs matplotlib, which is not a dependency of fanout. Writes million-memory.svg and
million-throughput.svg.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
# Keep text as text, and write the same file each time.
mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "fanout", "font.size": 10})

from matplotlib import pyplot as plt  # noqa: E402 - the backend comes first

_HERE = Path(__file__).parent
# Seconds over which branches are counted, as all branches of a shard end together.
_WINDOW_S = 10.0
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = _HERE / "results" / "million-1000000.json"
    parser.add_argument("result", type=Path, nargs="?", default=default)
    parser.add_argument("--out", type=Path, default=_HERE.parent / "docs" / "images")
    return parser.parse_args()


def memory(result: dict[str, Any], path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), width_ratios=[3, 2])
    names = [name for name in result["samples"][0] if name.endswith(" rss_mb")]
    for name, colour in zip([n for n in names if n != "server rss_mb"], _COLOURS, strict=False):
        _line(left, result, name, name.removesuffix(" rss_mb"), colour)
    left.set_title("Resident memory of each process", loc="left")
    _line(right, result, "redis_used_mb", "what the server holds", _COLOURS[0])
    if "server rss_mb" in names:
        _line(right, result, "server rss_mb", "its resident memory", _COLOURS[1])
    right.set_title("The server", loc="left")
    for axes in (left, right):
        axes.set_ylabel("MB")
        _finish(axes)
    _save(figure, path)


def throughput(result: dict[str, Any], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(10, 3.2))
    samples = result["samples"]
    ends, start = [], 0
    for end, sample in enumerate(samples):
        while sample["at_s"] - samples[start]["at_s"] > _WINDOW_S:
            start += 1
        took_s = sample["at_s"] - samples[max(start - 1, 0)]["at_s"]
        if end and took_s:
            done = sample["done"] - samples[max(start - 1, 0)]["done"]
            ends.append((sample["at_s"], done / took_s))
    axes.plot(*zip(*ends, strict=True), color=_COLOURS[0], linewidth=1.2, label="branches a second")
    axes.set_ylabel("branches a second")
    other = axes.twinx()
    _line(other, result, "messages", "messages in the broker", _COLOURS[4])
    other.set_ylabel("messages", color=_COLOURS[4])
    other.set_ylim(bottom=0)
    other.spines["top"].set_visible(False)
    total = result["branches"]
    axes.set_title(f"Throughput of {total:,} branches, and what waits for them", loc="left")
    _finish(axes)
    _save(figure, path)


def _line(axes: Any, result: dict[str, Any], column: str, label: str, colour: str) -> None:
    points = [
        (sample["at_s"], sample[column])
        for sample in result["samples"]
        if sample.get(column) is not None
    ]
    axes.plot(*zip(*points, strict=True), label=label, color=colour, linewidth=1.2)


def _finish(axes: Any) -> None:
    axes.set_xlabel("seconds")
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, linewidth=0.4, alpha=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, loc="lower right")


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    print(path)


def main() -> None:
    given = parsed()
    result = json.loads(given.result.read_text())
    given.out.mkdir(parents=True, exist_ok=True)
    memory(result, given.out / "million-memory.svg")
    throughput(result, given.out / "million-throughput.svg")


if __name__ == "__main__":
    main()
