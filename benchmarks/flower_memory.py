"""Measures Flower's memory during a long run, and whether it stops growing.

    python benchmarks/flower_memory.py [--branches 400000] [--max-tasks 20000 100000]
                                       [--out benchmarks/results/flower_memory.json]

For each limit, a separate process feeds the three events of each branch, in their wire format, to
Flower's state (its tasks, search index and metrics), and samples its own resident memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from flower.events import EventsState

if TYPE_CHECKING:
    from collections.abc import Iterator

_RUN = "0s8tvdj6"
_WORKERS = 3
_SHARD = 500
_FAILED_EACH = 20  # one in this many branches
_NOTES = 16


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--branches", type=int, default=400_000)
    parser.add_argument("--max-tasks", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def events(number: int) -> Iterator[bytes]:
    """Return the events of one branch, and of other tasks of its shard when they are due."""
    shard, position = divmod(number, _SHARD)
    group = f"{_RUN}/0/{shard}"
    if position == 0:
        yield from _of_task("fanout.expand", f"{group}/expand", number, _ids(shard))
    ids = _ids(shard, position=position)
    yield from _of_task("fanout.branch", f"{group}/{position}", number, ids, f"{group}/expand")
    if position == _SHARD - 1:
        yield from _of_task("fanout.collect", f"{group}/collect", number, _ids(shard))


def _ids(shard: int, **more: int) -> dict[str, Any]:
    return {"run_id": _RUN, "stage": 0, "shard": shard, **more}


def _of_task(
    name: str, task_id: str, number: int, kwargs: dict[str, Any], parent_id: str | None = None
) -> Iterator[bytes]:
    common = {
        "uuid": task_id,
        "hostname": f"worker{number % _WORKERS}@fleet",
        "pid": os.getpid(),
        "utcoffset": 0,
        "clock": number,
        "timestamp": time.time(),
    }
    received: dict[str, Any] = {
        "type": "task-received",
        "name": name,
        "args": "()",
        "kwargs": repr(kwargs),
    }
    received |= {"root_id": _RUN, "parent_id": parent_id}
    received |= {"retries": 0, "eta": None, "expires": None}
    end: dict[str, Any] = {"type": "task-succeeded", "result": "None", "runtime": 1.25}
    if parent_id and number % _FAILED_EACH == 0:
        exception = "BranchFailed('rate_limited')"
        end = {"type": "task-failed", "exception": exception, "traceback": "BranchFailed"}
    for fields in (received, {"type": "task-started"}, end):
        yield json.dumps({**common, **fields}).encode()


def fed(branches: int, max_tasks: int) -> dict[str, Any]:
    """Feed the events to a state; return the memory figures."""
    state = EventsState(max_tasks_in_memory=max_tasks, max_workers_in_memory=5_000)
    process = psutil.Process()
    before = process.memory_info().rss
    rss_mb = {}
    started = time.process_time()
    for number in range(branches):
        for raw in events(number):
            state.event({**json.loads(raw), "local_received": time.time()})
        if (number + 1) % max(1, branches // _NOTES) == 0:
            rss_mb[number + 1] = round(process.memory_info().rss / 1e6, 1)
    cpu_s = time.process_time() - started
    return {
        "max_tasks": max_tasks,
        "branches": branches,
        "tasks_kept": len(state.tasks),
        "events_counted": sum(sum(counts.values()) for counts in state.counter.values()),
        "rss_mb_before": round(before / 1e6, 1),
        "rss_mb_after": rss_mb,
        "events_per_cpu_s": round(3 * branches / cpu_s),
    }


def measured(branches: int, max_tasks: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child"]
    command += ["--branches", str(branches), "--max-tasks", str(max_tasks)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> None:
    given = parsed()
    if given.child:
        print(json.dumps(fed(given.branches, given.max_tasks[0])))
        return
    results = [measured(given.branches, max_tasks) for max_tasks in given.max_tasks]
    text = json.dumps(results, indent=2)
    print(text)
    if given.out:
        given.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
