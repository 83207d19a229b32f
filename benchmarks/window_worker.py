"""A worker, as ``fanout worker`` starts one, that lets in so many shards of a run at a time.

    BENCH_WINDOW=4 python benchmarks/window_worker.py --concurrency 32 --hostname NAME

There is no such setting: a fleet's window follows from its concurrency. Here that arithmetic is
replaced, and nothing else, to see what the window is worth.
"""

from __future__ import annotations

import os
import sys

from celery.__main__ import main

from fanout.runs import enqueue

if __name__ == "__main__":
    window = int(os.environ["BENCH_WINDOW"])
    # The name that its one caller, fleet_window, looks up.
    setattr(enqueue, "shard_window", lambda _concurrency: window)  # noqa: B010 - exported elsewhere
    words = ["celery", "-A", "workers.app", "worker", "--loglevel", "INFO"]
    sys.argv = [*words, *sys.argv[1:]]
    main()
