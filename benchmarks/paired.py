"""Measures the same run of the fake model with and without a feature, in pairs.

Each run has its own server and worker. The two runs of a pair follow one another, in alternating
order, so that other load on the machine affects both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from faults.nodes import Server, Worker, wait_until_up

from fanout import Client, RunSpec

__all__ = ["compare"]

_WARM_UP = 200
_BOUND_S = 600.0


def _parsed(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--branches", type=int, default=5_000)
    parser.add_argument("--concurrency", type=int, default=32)
    return parser.parse_args()


def _branches_per_s(branches: int, concurrency: int, env: dict[str, str]) -> float:
    """Run once; return the throughput."""
    with tempfile.TemporaryDirectory(prefix="fanout-paired-") as name:
        folder = Path(name)
        server = Server(folder / "server")
        worker = Worker("worker", server.url, folder, concurrency=concurrency, env=env)
        try:
            with Client(server.url) as client:
                while not wait_until_up([worker], client.workers()):
                    time.sleep(0.05)
                _timed(client, _WARM_UP)
                return branches / _timed(client, branches)
        finally:
            worker.kill()
            server.close()


def _timed(client: Client, branches: int) -> float:
    spec = RunSpec(model="fake", prompt="Summarise: {input}", reduce="vote")
    run = client.submit(spec, (f"document {i}: some text to be read" for i in range(branches)))
    return run.wait(_BOUND_S).elapsed_s


def compare(description: str | None, *, on: dict[str, str], off: dict[str, str]) -> None:
    """Measure with the options of the command line, and print JSON.

    Args:
        description: The description of the comparison.
        on: The environment of a worker with the feature.
        off: The environment of a worker without it.
    """
    given = _parsed(description)
    rates: dict[str, list[float]] = {"with": [], "without": []}
    settings = {"with": on, "without": off}
    for pair in range(given.pairs):
        for name in sorted(settings, reverse=bool(pair % 2)):
            rate = _branches_per_s(given.branches, given.concurrency, settings[name])
            rates[name].append(rate)
            print(f"pair {pair}, {name}: {rate:.0f}/s", file=sys.stderr, flush=True)
    ratios = [a / b for a, b in zip(rates["with"], rates["without"], strict=True)]
    print(
        json.dumps(
            {
                "branches": given.branches,
                "branches_per_s": {name: [round(rate) for rate in rates[name]] for name in rates},
                "ratios": [round(ratio, 4) for ratio in ratios],
                "ratio": {
                    "median": round(statistics.median(ratios), 4),
                    "min": round(min(ratios), 4),
                    "max": round(max(ratios), 4),
                },
            },
            indent=2,
        )
    )
