"""Checks a run of 1,000,000 branches: flat memory, and the same cost per branch as with 10,000.

    python benchmarks/million.py [--branches 1000000] [--workers 2] [--concurrency 200]
                                 [--storage URL] [--no-flower] [--reduce none] [--out FILE]

Starts a server, workers and Flower. Separate processes submit lazily generated documents: first
10,000, then all, then 10,000 again. Each second of the large run it records the memory and CPU time
of each process, the server's memory, and the numbers of ended branches and of messages. Then
`fanout results RUN --out` exports the outcomes, which must contain each index once. CPU time counts
from the moment a run has its id, so that it does not include the start of programs.

Writes benchmarks/results/million-N.json; benchmarks/plot_million.py draws it. ``--storage`` is as
FANOUT_STORAGE; ``folder`` is a temporary one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from scale.processes import ScaleFleet
from scale.samples import Sampler, cpu_s, peak_mb, thinned

from fanout import Client

_RESULTS = Path(__file__).parent / "results"
_SMALL = 10_000
_MOST_SAMPLES = 600
_POLL_S = 0.05
_START_S = 60.0
# The most seconds to wait for the end of a run, and the CPU seconds per second that count as idle.
_SETTLE_S = 60
_IDLE_S = 0.1


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--branches", type=int, default=1_000_000)
    parser.add_argument("--small", type=int, default=_SMALL, help="of the runs to compare with")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--concurrency", type=int, default=200, help="of each worker")
    parser.add_argument("--storage", help="where inputs and outcomes are kept; folder: one made")
    parser.add_argument("--flower", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--model", default="fake")
    parser.add_argument("--reduce", default="none")
    parser.add_argument("--out", type=Path, help="[default: benchmarks/results/million-N.json]")
    return parser.parse_args()


class Runs:
    """Submits runs to a fleet, one after the other, and measures them."""

    def __init__(self, fleet: ScaleFleet, folder: Path, given: argparse.Namespace) -> None:
        self._fleet = fleet
        self._folder = folder
        self._given = given
        self._number = 0

    def measured(self, label: str, branches: int) -> tuple[str, dict[str, Any], Sampler]:
        """Return the id of an ended run, its figures, and its samples."""
        self._number += 1
        started = self._folder / f"started{self._number}"
        plan = self._folder / f"plan{self._number}.json"
        fields = {"branches": branches, "model": self._given.model, "reduce": self._given.reduce}
        plan.write_text(json.dumps({**fields, "started": str(started)}))
        pids = {name: process.pid for name, process in self._fleet.processes.items()}
        client = self._fleet.client(self._number, plan)
        run_id = self._id(started, client)
        pids["client"] = client.pid
        before = {name: cpu_s(pid) for name, pid in pids.items()}
        sampler = Sampler(self._fleet.server.url, pids, run_id=run_id)
        used = dict(before)
        while client.status is None:
            # A process that has ended cannot be read.
            used = {name: max(used[name], cpu_s(pid)) for name, pid in pids.items()}
            _say_progress(sampler, label, branches)
            time.sleep(_POLL_S)
        sampler.close()
        _wait_until_idle([pid for name, pid in pids.items() if name != "client"])
        took = {name: max(used[name], cpu_s(pid)) - before[name] for name, pid in pids.items()}
        if client.status != 0:
            raise RuntimeError(f"the client has failed: see {client.log}")
        return run_id, self._figures(label, run_id, took), sampler

    def _id(self, started: Path, client: Any) -> str:
        until = time.monotonic() + _START_S
        while not started.exists() or not started.read_text():
            if client.status is not None or time.monotonic() > until:
                raise RuntimeError(f"the client has submitted nothing: see {client.log}")
            time.sleep(_POLL_S)
        return started.read_text()

    def _figures(self, label: str, run_id: str, took: dict[str, float]) -> dict[str, Any]:
        with Client(self._fleet.server.url) as client:
            status = client.run(run_id).status()
        kinds: dict[str, float] = {}
        for name, seconds in took.items():
            kind = "workers" if name.startswith("worker") else name
            kinds[kind] = kinds.get(kind, 0.0) + seconds
        kinds["all"] = sum(kinds.values())
        return {
            "label": label,
            "branches": status.total,
            "status": status.status.value,
            "succeeded": status.succeeded,
            "calls": status.usage.calls,
            "seconds": round(status.elapsed_s, 1),
            "branches_per_s": round(status.total / status.elapsed_s),
            "cpu_us_per_branch": {
                kind: round(seconds / status.total * 1e6) for kind, seconds in kinds.items()
            },
        }


def _wait_until_idle(pids: list[int]) -> None:
    """Wait for work after the end of a run: Flower still reads pending events."""
    for _ in range(_SETTLE_S):
        before = sum(cpu_s(pid) for pid in pids)
        time.sleep(1.0)
        if sum(cpu_s(pid) for pid in pids) - before < _IDLE_S:
            return


def _say_progress(sampler: Sampler, label: str, branches: int) -> None:
    if sys.stderr.isatty() and sampler.samples:
        done = sampler.samples[-1]["done"]
        sys.stderr.write(f"\r{label}: {done:,} of {branches:,} ")
        sys.stderr.flush()


def exported(fleet: ScaleFleet, run_id: str, folder: Path, branches: int) -> dict[str, Any]:
    """Export a run's outcomes, and check that each is present once."""
    began_at = time.monotonic()
    process = fleet.export(run_id, folder)
    most_mb, took_s = 0.0, 0.0
    while process.status is None:
        most_mb = max(most_mb, peak_mb(process.pid) or 0.0)
        took_s = max(took_s, cpu_s(process.pid))
        time.sleep(_POLL_S)
    seconds = time.monotonic() - began_at
    seen, rows, size = bytearray(branches), 0, 0
    for name in ("outputs.jsonl", "errors.jsonl"):
        with (folder / name).open("rb") as lines:
            for line in lines:
                seen[json.loads(line)["index"]] += 1
                rows, size = rows + 1, size + len(line)
    return {
        "rows": rows,
        "each_once": seen == b"\x01" * branches,
        "seconds": round(seconds, 1),
        "cpu_us_per_row": round(took_s / max(rows, 1) * 1e6),
        "peak_rss_mb": round(most_mb, 1),
        "written_mb": round(size / 1e6, 1),
    }


def memory(samples: list[dict[str, Any]], total: int) -> dict[str, dict[str, float]]:
    """Return the memory of each process after a tenth of the run, at its end, and at most."""
    columns = [name for name in samples[0] if name.endswith(("rss_mb", "pss_mb", "used_mb"))]
    known = {}
    for column in columns:
        values = [(s["done"], s[column]) for s in samples if s[column] is not None]
        if values:
            early = next((mb for done, mb in values if done >= total / 10), values[-1][1])
            most = max(mb for _, mb in values)
            known[column] = {"at_a_tenth": early, "at_the_end": values[-1][1], "most": most}
    return known


def kept(fleet: ScaleFleet, storage: str | None) -> dict[str, Any]:
    """Return the data that the server, and a storage folder, hold after all runs."""
    info: Any = fleet.server.client.info("memory")
    found = {
        "redis_used_mb": round(info["used_memory"] / 1e6, 1),
        "redis_peak_mb": round(info["used_memory_peak"] / 1e6, 1),
        "redis_keys": fleet.server.client.dbsize(),
    }
    if storage and storage.startswith("/"):
        sizes = [path.stat().st_size for path in Path(storage).rglob("*") if path.is_file()]
        found |= {"files": len(sizes), "files_mb": round(sum(sizes) / 1e6, 1)}
    return found


def measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    storage = given.storage
    if storage == "folder":
        storage = str(folder / "storage")
        Path(storage).mkdir()
    fleet = ScaleFleet(
        folder,
        workers=given.workers,
        concurrency=given.concurrency,
        storage=storage,
        flower=given.flower,
    )
    with fleet:
        runs = Runs(fleet, folder, given)
        # The first run of a fleet includes imports and connecting.
        runs.measured("warm-up", min(given.small, 2_000))
        small = [runs.measured("before", given.small)[1]]
        run_id, large, sampler = runs.measured("all", given.branches)
        export = exported(fleet, run_id, folder / "export", given.branches)
        small.append(runs.measured("after", given.small)[1])
        held = kept(fleet, storage)
    usual = sum(run["cpu_us_per_branch"]["all"] for run in small) / len(small)
    samples = sampler.samples
    return {
        "branches": given.branches,
        "workers": given.workers,
        "concurrency": given.concurrency,
        "storage": None if storage is None else given.storage.partition("://")[0],
        "flower": given.flower,
        "model": given.model,
        "reduce": given.reduce,
        "fanout": metadata.version("fanout-llm"),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "runs": [small[0], large, small[1]],
        "cost_against_small": round(large["cpu_us_per_branch"]["all"] / usual, 3),
        "most_messages": max(sample["messages"] for sample in samples),
        "memory_mb": memory(samples, given.branches),
        "kept": held,
        "export": export,
        "samples": thinned(samples, _MOST_SAMPLES),
    }


def main() -> None:
    given = parsed()
    # So that ending this program also ends the fleet.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))
    out = given.out or _RESULTS / f"million-{given.branches}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fanout-million-", ignore_cleanup_errors=True) as name:
        result = measure(given, Path(name))
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(
        json.dumps({name: value for name, value in result.items() if name != "samples"}, indent=2)
    )
    large = result["runs"][1]
    if not (result["export"]["each_once"] and large["succeeded"] == large["branches"]):
        sys.exit("not every branch has succeeded once")


if __name__ == "__main__":
    main()
