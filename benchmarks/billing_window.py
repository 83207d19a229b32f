"""Measures the window in which the death of a worker causes a second bill for a call.

    python benchmarks/billing_window.py [--branches 2000] [--concurrency 1 32 200]

fanout repeats a call if its worker dies before the outcome is written. A provider that bills per
answer then bills twice, if the answer had arrived. This measures the time from the model's answer to
the store's confirmation, for each branch of a worker in this process. Prints JSON, in milliseconds;
the result is benchmarks/results/billing_window.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

from measure import RESULTS

from fanout import ParallelCalls
from fanout.stores.redis.branches import RedisBranches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fanout.core.state import RecordReply, RecordRequest

_LATENCY_S = 0.05


def measure(branches: int, concurrency: int) -> list[float]:
    """Return the seconds from answer to write for each branch."""
    answered: dict[str, float] = {}
    windows: list[float] = []
    record = RedisBranches.record_all

    def timed(self: RedisBranches, requests: Sequence[RecordRequest]) -> list[RecordReply]:
        recorded = record(self, requests)
        now = time.perf_counter()
        windows.extend(now - answered[str(each.outcome.output)] for each in requests)
        return recorded

    async def model(prompt: str) -> str:
        await asyncio.sleep(_LATENCY_S)
        answered[prompt] = time.perf_counter()
        return prompt

    RedisBranches.record_all = timed  # type: ignore[method-assign]
    try:
        with ParallelCalls(llm=model, max_workers=concurrency) as runner:
            runner.run([f"document {i}" for i in range(branches)], "{input}")
    finally:
        RedisBranches.record_all = record  # type: ignore[method-assign]
    return windows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--branches", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 32, 200])
    parser.add_argument("--out", type=Path, default=RESULTS / "billing_window.json")
    options = parser.parse_args()
    rows = []
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
        rows.append(row)
        print(json.dumps(row), flush=True)
    options.out.write_text(json.dumps({"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
