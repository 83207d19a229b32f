"""How long is the moment in which a worker's death makes a call be billed twice?

    python benchmarks/billing_window.py [--branches 2000] [--concurrency 1 32 200]

A call whose worker dies before the outcome is written is made again. For a provider that bills by
the answer, that matters from the answer to the write. This measures it, branch by branch, on a
worker in this process: from the model's return to the store's confirmation. Prints JSON, in
milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from typing import Any

from fanout import ParallelCalls
from fanout.stores import RedisStore

_LATENCY_S = 0.05


def measure(branches: int, concurrency: int) -> list[float]:
    """Return the seconds from answer to write of each branch."""
    answered: dict[str, float] = {}
    windows: list[float] = []
    record = RedisStore.record

    def timed(self: RedisStore, *key: Any, **options: Any) -> Any:
        recorded = record(self, *key, **options)
        windows.append(time.perf_counter() - answered[key[4].output])
        return recorded

    async def model(prompt: str) -> str:
        await asyncio.sleep(_LATENCY_S)
        answered[prompt] = time.perf_counter()
        return prompt

    RedisStore.record = timed  # type: ignore[method-assign]
    try:
        with ParallelCalls(llm=model, max_workers=concurrency) as runner:
            runner.run([f"document {i}" for i in range(branches)], "{input}")
    finally:
        RedisStore.record = record  # type: ignore[method-assign]
    return windows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--branches", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 32, 200])
    options = parser.parse_args()
    for concurrency in options.concurrency:
        branches = min(options.branches, 200 * concurrency)
        windows = sorted(1000 * window for window in measure(branches, concurrency))
        row = {
            "concurrency": concurrency,
            "branches": len(windows),
            "call_ms": 1000 * _LATENCY_S,
            "median_ms": round(statistics.median(windows), 2),
            "p99_ms": round(windows[int(0.99 * len(windows))], 2),
            "max_ms": round(windows[-1], 2),
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
