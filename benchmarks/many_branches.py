"""One run of very many fake branches: does it end, and do memory and queue stay bounded?

    python benchmarks/many_branches.py [--branches 100000] [--concurrency 32]

Starts an embedded fleet, submits lazily generated documents, and prints as JSON: seconds, branches
a second, the client's peak memory before and during the run, the most messages that waited in the
broker, and the server's peak memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from typing import TYPE_CHECKING

import redis

from fanout import Client, RunSpec
from fanout.broker import BRANCHES_QUEUE, CONTROL_QUEUE

if TYPE_CHECKING:
    from collections.abc import Iterator


def documents(count: int) -> Iterator[str]:
    for i in range(count):
        yield f"document {i}: " + "some text that has to be read " * 10


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--branches", type=int, default=100_000)
    parser.add_argument("--concurrency", type=int, default=32)
    options = parser.parse_args()
    spec = RunSpec(model="fake", prompt="Summarise: {input}", reduce="vote")
    with Client(concurrency=options.concurrency) as client:
        client.submit(spec, documents(10)).wait(60)
        before_mb = peak_mb()
        started = time.monotonic()
        run = client.submit(spec, documents(options.branches))
        enqueued_s = time.monotonic() - started
        with redis.Redis.from_url(client.broker_url) as server:
            most = 0
            while not (status := run.status()).status.has_ended:
                queued = server.llen(BRANCHES_QUEUE) + server.llen(CONTROL_QUEUE)
                most = max(most, queued + server.hlen("unacked"))
                time.sleep(0.1)
            server_mb = server.info("memory")["used_memory_peak"] / 1e6
        read = sum(1 for _ in run.outcomes())
        print(
            json.dumps(
                {
                    "branches": options.branches,
                    "status": status.status.value,
                    "succeeded": status.succeeded,
                    "outcomes_read": read,
                    "seconds": round(status.elapsed_s, 1),
                    "branches_per_s": round(options.branches / status.elapsed_s),
                    "enqueued_s": round(enqueued_s, 1),
                    "client_peak_mb_before": round(before_mb, 1),
                    "client_peak_mb": round(peak_mb(), 1),
                    "most_messages_in_broker": most,
                    "server_peak_mb": round(server_mb, 1),
                },
                indent=2,
            )
        )


if __name__ == "__main__":
    main()
