"""What would 100 machines and 100,000,000 branches need? A model, checked against measurements.

    python benchmarks/scaling_model.py [--machines 100] [--branches 100000000]

It reads benchmarks/results/ (engine_cost, compare-zero, compare-second, compare-thousand,
growth-workers, growth-line, server_traffic, provider and the largest million-*), predicts what
was measured there from as few figures as it can, and goes on to what cannot be measured on one
machine. The result is benchmarks/results/scaling_model.json, and a table on standard output.

The model. A run of N branches on W workers with C in flight each, calls of L seconds, a server R
seconds away:

    seconds = fixed + N / rate
    rate    = the least of
              W C / (L + turn)                       places, each busy for a call and its turn
              cores / cpu                            all that a branch costs, where cores are shared
              W / worker_cpu                         one core for each worker process
              1 / server_cpu                         one core for the server's commands
              W (C + ahead) / (busy + 7 R)           places, each taken for seven round trips
              W taken / (2 R + taken * take)         two round trips for so many messages at once

``fixed`` and ``turn`` come from compare-second and growth-workers with one worker; the costs from
growth-line on loopback, compare-zero and provider_cost. Everything else is predicted.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from measure import RESULTS, rounded, save

_TRIPS = 7
_AHEAD_PART, _MOST_AHEAD = 2, 256
_TAKEN, _TAKEN_PART = 32, 4
# Of consuming a message, of a worker's cost: benchmarks/profile_branch.py.
_TAKE_SHARE = 0.25
# Above this a single-threaded server answers noticeably later.
_BUSY = 0.6
_SHARD = 500


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a branch costs.

    Attributes:
        engine_ms: CPU of a worker without HTTP.
        worker_ms: CPU of a worker with it.
        server_ms: CPU of the server.
        client_ms: CPU of the client.
        provider_ms: CPU of the mock provider.
        fixed_s: Seconds from submitting to the first call, and from the last one to the end.
        turn_s: Seconds from the end of a call until the next one begins in its place.
        bytes_in: Bytes that the server is sent.
        bytes_out: Bytes that it sends.
        kept_bytes: Bytes that the server keeps of a branch that has ended.
    """

    engine_ms: float
    worker_ms: float
    server_ms: float
    client_ms: float
    provider_ms: float
    fixed_s: float
    turn_s: float
    bytes_in: float
    bytes_out: float
    kept_bytes: float


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def _fanout(suite: str) -> dict[str, Any]:
    summary: dict[str, Any] = _read(f"compare-{suite}")["contenders"]["fanout"]["summary"]
    return summary


def _value(name: str, value: float) -> dict[str, Any]:
    (found,) = (each for each in _read(name)["values"] if each["value"] == value)
    summary: dict[str, Any] = found["summary"]
    return summary


def _million() -> dict[str, Any]:
    files = RESULTS.glob("million-*.json")
    return max((json.loads(path.read_text()) for path in files), key=lambda each: each["branches"])


def _kept_bytes() -> float:
    """Return what the server keeps of a branch, its compressed input and outcome, at the end."""
    million = _million()
    branches = sum(run["branches"] for run in million["runs"])
    return float(million["kept"]["redis_used_mb"] * 1e6 / branches)


def _costs() -> Costs:
    line = _value("growth-line", 0)["cpu_ms_per_branch"]
    zero = _fanout("zero")["cpu_ms_per_call"]["median"]
    traffic = _read("server_traffic")["values"][-1]["summary"]
    server, client = line["server"]["median"], line["client"]["median"]
    # Two runs, and two unknowns: 20 waves of a second, 30 of half a second.
    second = _fanout("second")["wall_s"]["median"] - 20.0
    workers = _value("growth-workers", 1)["wall_s"]["median"] - 15.0
    turn_s = max(0.0, (workers - second) / 10)
    return Costs(
        engine_ms=line["workers"]["median"],
        worker_ms=zero - server - client,
        server_ms=server,
        client_ms=client,
        provider_ms=_read("provider")["summary"]["cpu_us_per_request"]["median"] / 1e3,
        fixed_s=max(0.0, second - 20 * turn_s),
        turn_s=turn_s,
        bytes_in=traffic["bytes_in"]["median"],
        bytes_out=traffic["bytes_out"]["median"],
        kept_bytes=_kept_bytes(),
    )


def rate(
    costs: Costs,
    *,
    workers: int,
    concurrency: int,
    latency_s: float,
    round_trip_s: float = 0.0,
    cores: int | None = None,
    has_http: bool = True,
) -> tuple[float, str]:
    """Return branches a second, and what limits them."""
    worker_ms = costs.worker_ms if has_http else costs.engine_ms
    all_ms = worker_ms + costs.server_ms + costs.client_ms
    all_ms += costs.provider_ms if has_http else 0.0
    places = concurrency + min(_MOST_AHEAD, concurrency // _AHEAD_PART)
    taken = min(max(_TAKEN, places // _TAKEN_PART), places)
    busy_s = latency_s + places * worker_ms / 1e3
    taking_s = 2 * round_trip_s + taken * worker_ms * _TAKE_SHARE / 1e3
    limits = {
        "one core for each worker process": workers / worker_ms * 1e3,
        "one core for the server's commands": 1e3 / costs.server_ms,
        "round trips of what is taken": workers * places / (busy_s + _TRIPS * round_trip_s),
        "round trips of taking": workers * taken / taking_s,
    }
    if latency_s:
        limits["calls in flight"] = workers * concurrency / (latency_s + costs.turn_s)
    if cores:
        limits["the cores of one machine"] = cores / all_ms * 1e3
    name = min(limits, key=lambda each: limits[each])
    return limits[name], name


def _checked(costs: Costs) -> list[dict[str, Any]]:
    """Predict what was measured."""
    cores = _read("growth-workers")["machine"]["cores"]
    found = []

    def check(what: str, branches: float, measured: float, **given: Any) -> None:
        most, limit = rate(costs, cores=cores, **given)
        predicted = branches / (costs.fixed_s + branches / most)
        found.append(
            {
                "what": what,
                "measured_per_s": rounded(measured),
                "predicted_per_s": rounded(predicted),
                "predicted_over_measured": rounded(predicted / measured),
                "limit": limit,
            }
        )

    for workers in (1, 2, 4, 8):
        summary = _value("growth-workers", workers)
        check(
            f"{workers} workers, 50 calls of 0.5 s in flight on each",
            summary["branches"]["median"],
            summary["branches_per_s"]["median"],
            workers=workers,
            concurrency=50,
            latency_s=0.5,
        )
    thousand = _fanout("thousand")["calls_per_s"]["median"]
    given = {"workers": 2, "concurrency": 500, "latency_s": 1.0}
    check("2 workers, 500 calls of 1 s in flight on each", 20_000, thousand, **given)
    for each in _read("growth-line")["values"]:
        summary = each["summary"]
        round_trip_ms = summary["round_trip_ms"]["median"]
        check(
            f"no HTTP, a server {round_trip_ms:.2g} ms away",
            summary["branches"]["median"],
            summary["branches_per_s"]["median"],
            workers=1,
            concurrency=200,
            latency_s=0.0,
            round_trip_s=round_trip_ms / 1e3,
            has_http=False,
        )
    return found


def _plan(costs: Costs, options: argparse.Namespace, latency_s: float) -> dict[str, Any]:
    """Return what so many machines do with calls of some length, and what they need for it."""
    server_per_s = _BUSY * 1e3 / costs.server_ms
    # As many calls in flight as one server can keep up with, on all machines.
    in_flight = server_per_s * (latency_s + costs.turn_s)
    seconds = options.branches / server_per_s
    return {
        "latency_s": latency_s,
        "branches_per_s": rounded(server_per_s),
        "hours": rounded(seconds / 3600),
        "calls_in_flight": round(in_flight),
        "calls_in_flight_per_machine": round(in_flight / options.machines),
        "worker_cores": rounded(server_per_s * costs.worker_ms / 1e3),
        "worker_cores_per_machine": rounded(
            server_per_s * costs.worker_ms / 1e3 / options.machines
        ),
        "server_mbit_in": rounded(server_per_s * costs.bytes_in * 8 / 1e6),
        "server_mbit_out": rounded(server_per_s * costs.bytes_out * 8 / 1e6),
        "machine_hours": rounded(options.machines * seconds / 3600),
    }


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--machines", type=int, default=100)
    parser.add_argument("--branches", type=int, default=100_000_000)
    parser.add_argument("--out", type=Path, default=RESULTS / "scaling_model.json")
    return parser.parse_args()


def main() -> None:
    options = _parsed()
    costs = _costs()
    checks = _checked(costs)
    plans = [_plan(costs, options, latency_s) for latency_s in (0.2, 1.0, 5.0, 20.0)]
    kept_gb = options.branches * costs.kept_bytes / 1e9
    result = {
        "costs": {name: rounded(value) for name, value in asdict(costs).items()},
        "checks": checks,
        "machines": options.machines,
        "branches": options.branches,
        "one_server": plans,
        "kept_gb": rounded(kept_gb),
        "shards": -(-options.branches // _SHARD),
    }
    save(options.out, result)
    for each in checks:
        print(
            f"{each['what']:55} measured {each['measured_per_s']:8} predicted "
            f"{each['predicted_per_s']:8} x{each['predicted_over_measured']} ({each['limit']})"
        )
    for plan in plans:
        print(json.dumps(plan))
    print(f"kept: {kept_gb:.1f} GB")


if __name__ == "__main__":
    main()
