"""Measures how soon other workers repeat the calls of a dead worker, with default settings.

    python benchmarks/recovery.py [--times 6] [--at-once 3] [--concurrency 8] [--latency 20]

Each time, two workers with their own server have calls in flight in all slots. SIGKILL then ends one
worker, which is not replaced. Prints, as JSON, the distribution of seconds from the kill until each of
its calls runs on the other worker. That worker is busy with its own calls for up to ``--latency``
seconds, and ``--backlog`` more branches wait in the queue.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from faults.client import key, spec
from faults.ledger import Injury, analyse, parse
from faults.nodes import Server, Worker, wait_until_up
from faults.table import distribution

from fanout import Client

if TYPE_CHECKING:
    from collections.abc import Callable

_LOOK_S = 0.05
_BOUND_S = 180.0
# The kill comes at a random moment between two lease renewals, which are some seconds apart.
_SPREAD_S = 7.5


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=6)
    parser.add_argument("--at-once", type=int, default=3, help="fleets that run side by side")
    parser.add_argument("--concurrency", type=int, default=8, help="of each worker")
    parser.add_argument("--latency", type=float, default=20.0, help="of a call, in seconds")
    parser.add_argument("--backlog", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def once(number: int, given: argparse.Namespace) -> list[float]:
    """Kill a worker once; return the seconds until each of its calls ran again."""
    with tempfile.TemporaryDirectory(prefix="fanout-recovery-") as name:
        folder = Path(name)
        server = Server(folder / "server")
        env = {"CHAOS_LATENCY_S": str(given.latency), "CHAOS_JITTER_S": "0"}
        start = partial(Worker, url=server.url, folder=folder, env=env)
        workers = [start(name, concurrency=given.concurrency) for name in ("victim", "other")]
        try:
            with Client(server.url) as client:
                return _killed(client, workers, folder / "ledger", number, given)
        finally:
            for worker in workers:
                worker.kill()
            server.close()


def _killed(
    client: Client, workers: list[Worker], ledger: Path, number: int, given: argparse.Namespace
) -> list[float]:
    victim = workers[0]
    slots = given.concurrency * len(workers)
    _wait_for(lambda: wait_until_up(workers, client.workers()))
    # Renewals and restores are periodic since the workers started: wait for a random moment.
    dice = random.Random(given.seed + number)  # noqa: S311 - see --seed
    time.sleep(dice.uniform(0, _SPREAD_S))
    run = client.submit(spec(), (f"{key(i)} text" for i in range(slots + given.backlog)))
    _wait_for(lambda: ledger.exists() and _lines(ledger) >= slots)
    time.sleep(dice.uniform(0, _SPREAD_S))
    victim.kill()
    dead_at = time.time()
    injury = Injury(number=0, kind="kill_worker", at=dead_at, dead_at=dead_at, worker=victim.name)
    run.wait(_BOUND_S)
    verdict = analyse(parse(ledger.read_text().splitlines()), [injury], ended_at=time.time())
    waits = verdict.call_recovery_s
    shown = json.dumps(distribution(waits))
    print(f"{number}: {run.status().succeeded} succeeded, {shown}", file=sys.stderr, flush=True)
    return waits


def _lines(ledger: Path) -> int:
    return len(ledger.read_bytes().splitlines())


def _wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + _BOUND_S
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"waited {_BOUND_S:.0f} s in vain")
        time.sleep(_LOOK_S)


def main() -> None:
    given = parsed()
    with ThreadPoolExecutor(given.at_once) as threads:
        times = list(threads.map(partial(once, given=given), range(given.times)))
    print(
        json.dumps(
            {
                "kills": given.times,
                "calls_in_flight_s": distribution([wait for waits in times for wait in waits]),
                "last_call_of_each_kill_s": distribution([max(waits) for waits in times if waits]),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
