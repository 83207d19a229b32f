"""Measures the cost of task events: the same run with and without them.

    python benchmarks/events_cost.py [--pairs 5] [--branches 5000] [--concurrency 32]

Prints, as JSON, the branches a second, and the ratio of throughputs, with over without, for each
pair. No monitor listens, so its own cost is not included.
"""

from __future__ import annotations

from paired import compare

if __name__ == "__main__":
    compare(__doc__, on={"FANOUT_TASK_EVENTS": "true"}, off={"FANOUT_TASK_EVENTS": "false"})
