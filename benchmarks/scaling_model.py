"""A model of a run with 100 machines and 100,000,000 branches, checked against measurements.

    python benchmarks/scaling_model.py [--workers 10,25,100,400] [--branches 100000000]

It reads benchmarks/results/ (engine_cost, compare-zero, compare-second, compare-thousand,
growth-workers, growth-line, server_traffic, provider and the largest million-*), predicts those
measurements from as few figures as possible, and then predicts sizes that one machine cannot measure.
The result is benchmarks/results/scaling_model.json, and a table on standard output.

The model. A run of N branches on W workers with C in flight each, calls of L seconds, a server R
seconds away:

    seconds = fixed + N / rate
    rate    = the minimum of
              W C / (L + turn)                       places, each busy for a call and its turn
              cores / cpu                            the whole cost of a branch, if the cores are shared
              W / worker_cpu                         one core for each worker process
              1 / server_cpu                         one core for the server's commands
              W (C + ahead) / (busy + 14 R)          places, each occupied for these round trips
              W taken / (2 R + taken * take)         two round trips for each batch of messages

Fourteen: two to take, one to begin, one a shard to write, two a shard to count and one to settle,
for two shards at a time; and each of these steps waits for half of the one under way.

``fixed`` and ``turn`` come from compare-second and growth-workers with one worker; the costs from
growth-line on loopback, compare-zero and provider. Everything else is predicted.

The cost of a branch for server and worker depends on how many branches share a round trip, and so on
the branches per second of a worker. The model uses a power law between growth-workers with eight
workers (few) and the runs on one full worker (many).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from math import log
from pathlib import Path
from typing import Any

from measure import RESULTS, rounded, save

_TRIPS = 14
_AHEAD_PART, _MOST_AHEAD = 2, 256
_TAKEN, _TAKEN_PART = 32, 4
# The share of consuming a message in a worker's cost: benchmarks/profile_branch.py.
_TAKE_SHARE = 0.25
# Above this a single-threaded server answers noticeably later.
_BUSY = 0.6
_SHARD = 500
_LATENCIES_S = (1, 10)


@dataclass(frozen=True, kw_only=True)
class Costs:
    """The costs of a branch.

    Attributes:
        engine_ms: CPU of a worker without HTTP.
        worker_ms: CPU of a worker with it.
        server_ms: CPU of the server.
        client_ms: CPU of the client.
        provider_ms: CPU of the mock provider.
        fixed_s: Seconds from submitting to the first call, and from the last one to the end.
        turn_s: Seconds from the end of a call until the next one begins in its place.
        bytes_in: Bytes that the server receives.
        bytes_out: Bytes that the server sends.
        kept_bytes: Bytes that the server stores for an ended branch.
        few: A low number of branches a second and worker, with the CPU in ms of worker and server.
        many: The same for a high number.
        alone_ms: CPU of the server for a branch that shares no round trip: the most it costs.
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
    few: tuple[float, float, float]
    many: tuple[float, float, float]
    alone_ms: float

    def at(self, per_worker_s: float) -> tuple[float, float]:
        """Return worker_ms and server_ms for a number of branches a second on each worker."""
        few, many = self.few, self.many
        place = log(many[0] / min(max(per_worker_s, 1.0), many[0])) / log(many[0] / few[0])
        worker, server = (many[at] * (few[at] / many[at]) ** place for at in (1, 2))
        return worker, min(server, self.alone_ms)


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
    """Return the bytes of an ended branch on the server: its compressed input and outcome."""
    million = _million()
    branches = sum(run["branches"] for run in million["runs"])
    return float(million["kept"]["redis_used_mb"] * 1e6 / branches)


def _costs() -> Costs:
    line = _value("growth-line", 0)["cpu_ms_per_branch"]
    zero = _fanout("zero")["cpu_ms_per_call"]["median"]
    traffic = _read("server_traffic")["values"][-1]["summary"]
    server, client = line["server"]["median"], line["client"]["median"]
    # Two runs for two unknowns: 20 waves of 1 s, 30 waves of 0.5 s.
    second = _fanout("second")["wall_s"]["median"] - 20.0
    workers = _value("growth-workers", 1)["wall_s"]["median"] - 15.0
    turn_s = max(0.0, (workers - second) / 10)
    eight = _value("growth-workers", 8)
    trickle = {name: found["median"] for name, found in eight["cpu_ms_per_branch"].items()}
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
        few=(eight["branches_per_s"]["median"] / 8, trickle["workers"], trickle["server"]),
        alone_ms=_read("server_traffic")["values"][0]["summary"]["cpu_us"]["median"] / 1e3,
        many=(_fanout("zero")["calls_per_s"]["median"], zero - server - client, server),
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
    """Return the branches a second, and their limit."""
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
    """Predict the measurements."""
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


def _plan(costs: Costs, branches: int, workers: int) -> dict[str, Any]:
    """Return the maximum throughput of workers with one server, and the resources for it."""
    per_s = 1e3
    # A higher rate lowers the server's cost of a branch: iterate until both agree.
    for _ in range(100):
        worker_ms, server_ms = costs.at(per_s / workers)
        per_s = (per_s + _BUSY * 1e3 / server_ms) / 2
    seconds = branches / per_s
    return {
        "workers": workers,
        "branches_per_s": rounded(per_s),
        "hours": rounded(seconds / 3600),
        "calls_in_flight": {str(s): round(per_s * (s + costs.turn_s)) for s in _LATENCIES_S},
        "server_ms": rounded(server_ms),
        "worker_ms": rounded(worker_ms),
        "worker_cores": rounded(per_s * worker_ms / 1e3),
        "server_mbit_in": rounded(per_s * costs.bytes_in * 8 / 1e6),
        "server_mbit_out": rounded(per_s * costs.bytes_out * 8 / 1e6),
        "worker_hours": rounded(workers * seconds / 3600),
    }


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", default="10,25,100,400", help="of the fleet; by comma")
    parser.add_argument("--branches", type=int, default=100_000_000)
    parser.add_argument("--out", type=Path, default=RESULTS / "scaling_model.json")
    return parser.parse_args()


def main() -> None:
    options = _parsed()
    costs = _costs()
    checks = _checked(costs)
    counts = [int(word) for word in options.workers.split(",")]
    plans = [_plan(costs, options.branches, workers) for workers in counts]
    kept_gb = options.branches * costs.kept_bytes / 1e9
    result = {
        "costs": asdict(costs),
        "checks": checks,
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
