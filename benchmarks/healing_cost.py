"""Measures the cost of leases and reaper: the same run with and without them.

    python benchmarks/healing_cost.py [--pairs 5] [--branches 5000] [--concurrency 32]

Prints, as JSON, the branches a second, and the ratio of throughputs, with over without, for each
pair. Without: the reaper is off, and the lease is so long that it is never renewed.
"""

from __future__ import annotations

from paired import compare

_WITHOUT = {"FANOUT_REAPER_INTERVAL_S": "0", "FANOUT_VISIBILITY_TIMEOUT_S": "1000000"}

if __name__ == "__main__":
    compare(__doc__, on={}, off=_WITHOUT)
