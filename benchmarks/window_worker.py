"""A ``fanout worker`` with a fixed window: the shards of a run in flight.

    BENCH_WINDOW=4 python benchmarks/window_worker.py --concurrency 32 --hostname NAME

No such setting exists: a fleet's window follows from its concurrency. This program replaces only
that calculation, to measure the effect of the window.
"""

from __future__ import annotations

import os
import sys

from celery.__main__ import main

from fanout.runs import enqueue

if __name__ == "__main__":
    window = int(os.environ["BENCH_WINDOW"])
    # The name that its only caller, fleet_window, looks up.
    setattr(enqueue, "shard_window", lambda _concurrency: window)  # noqa: B010 - exported elsewhere
    words = ["celery", "-A", "workers.app", "worker", "--loglevel", "INFO"]
    sys.argv = [*words, *sys.argv[1:]]
    main()
