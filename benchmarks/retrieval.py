"""Measures an index of many passages: its building, its file, a worker that searches it, and a whole fleet.

    python benchmarks/retrieval.py [--passages 1000000]

The passages are rows of a JSONL file, of 40 words each, as frequent as words of a language are. First one
process builds the index, and several search it at the same time. Then some clients and workers begin at
once: the clients submit runs that retrieve from the same file, and the workers have a cache each, as on
machines of their own. The result is benchmarks/results/retrieval.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import redis
from measure import RESULTS, MemoryPeak, descendants, machine, rounded, save, versions
from services import Processes, Valkey

_WORDS = 200_000
_LENGTH = 40
_AT_ONCE = 10_000
_QUERY_WORDS = 8
_QUERIES = 200
_TOP_K = 5
_SEARCHERS = 4
_CLIENTS = 2
_WORKERS = 2
_BOUND_S = 3_600

_BUILD = """
import json, os, sys, time
from pathlib import Path
from fanout.core.spec import make_spec
from fanout.retrieval.building import IndexBuilder
from fanout.retrieval.reading import read_passages
source, folder = sys.argv[1], Path(sys.argv[2])
spec = make_spec(model="fake", prompt="{input} {context}", retrieve=source)
began = time.perf_counter()
with IndexBuilder(folder) as builder:
    for one in read_passages(spec, source, notify=lambda _: None):
        builder.add(*one)
    read = time.perf_counter()
    builder.finish()
    done = time.perf_counter()
    builder.path.rename(folder / "index.passages")
used = os.times()
cpu_s = used.user + used.system + used.children_user + used.children_system
print(json.dumps({"read_s": read - began, "index_s": done - read, "cpu_s": cpu_s}))
"""
_SEARCH = """
import json, sys, time
from pathlib import Path
from fanout.retrieval.index_file import PassageIndex
began = time.perf_counter()
index = PassageIndex(Path(sys.argv[1]))
opened = time.perf_counter()
took = []
for query in json.load(open(sys.argv[2])):
    start = time.thread_time()
    found = index.search(query, int(sys.argv[3]))
    took.append((time.thread_time() - start) * 1e3)
    assert found
memory = {
    line.split()[0].rstrip(":"): int(line.split()[1])
    for line in open("/proc/self/smaps_rollup").read().splitlines()[1:]
}
print(json.dumps({
    "open_ms": (opened - began) * 1e3, "took_ms": took,
    "own_mb": (memory["Private_Dirty"] + memory["Private_Clean"]) / 1e3, "rss_mb": memory["Rss"] / 1e3,
    "anonymous_mb": memory["Anonymous"] / 1e3,
}))
"""
_SUBMIT = """
import json, sys, time
from fanout import Client
from fanout.core.spec import make_spec
url, source = sys.argv[1:]
notices = []
spec = make_spec(model="fake", prompt="{input} {context}", retrieve=source, cache=False)
began = time.perf_counter()
with Client(url) as client:
    run = client.submit(spec, json.load(sys.stdin), on_notice=lambda one: notices.append(one.text))
    began_s = time.perf_counter() - began
    status = run.wait(3600)
print(json.dumps({
    "submitted_s": began_s, "ended_s": time.perf_counter() - began, "notices": notices,
    "succeeded": status.succeeded,
}))
"""


def passages_file(path: Path, count: int) -> list[str]:
    """Write passages, and return queries whose words are among them."""
    rand = np.random.default_rng(7)
    letters = np.array(list("abcdefghijklmnoprstuvw"))
    words = np.array(["".join(rand.choice(letters, rand.integers(3, 10))) for _ in range(_WORDS)])
    shares = 1 / (np.arange(_WORDS) + 3)
    shares /= shares.sum()
    with path.open("w") as file:
        for first in range(0, count, _AT_ONCE):
            drawn = rand.choice(words, (min(_AT_ONCE, count - first), _LENGTH), p=shares)
            for number, some in enumerate(drawn.tolist(), first):
                file.write(f'{{"id": {number}, "text": "{" ".join(some)}"}}\n')
    asked = rand.choice(words, (_QUERIES, _QUERY_WORDS), p=shares)
    return [" ".join(some) for some in asked.tolist()]


def one_machine(folder: Path, source: Path, queries: list[str]) -> dict[str, Any]:
    """Return what building and searching cost, without a fleet."""
    built, peak_mb = _measured(_BUILD, source, folder)
    index, asked = folder / "index.passages", folder / "queries.json"
    asked.write_text(json.dumps(queries))
    words = [sys.executable, "-c", _SEARCH, str(index), str(asked), str(_TOP_K)]
    [alone] = _searches([words])
    together = _searches([words] * _SEARCHERS)
    took = sorted(alone["took_ms"])
    return {
        **{name: rounded(value) for name, value in built.items()},
        "build_peak_mb": rounded(peak_mb),
        "index_bytes": index.stat().st_size,
        "passages_bytes": source.stat().st_size,
        "open_ms": rounded(alone["open_ms"]),
        "query_ms": {
            "median": rounded(statistics.median(took)),
            "p95": rounded(took[len(took) * 95 // 100]),
            "first": rounded(alone["took_ms"][0]),
        },
        "searcher_mb": {
            "rss": rounded(alone["rss_mb"]),
            "anonymous": rounded(alone["anonymous_mb"]),
            "own, of several": rounded(statistics.median(one["own_mb"] for one in together)),
        },
        "searchers": _SEARCHERS,
    }


def _measured(program: str, *arguments: object) -> tuple[dict[str, float], float]:
    words = [sys.executable, "-c", program, *map(str, arguments)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    with MemoryPeak(process.pid) as peak:
        found, _ = process.communicate()
    if process.returncode:
        raise RuntimeError("the index was not built")
    return json.loads(found.splitlines()[-1]), peak.pss_mb


def _searches(commands: list[list[str]]) -> list[dict[str, Any]]:
    running = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for words in commands]
    return [json.loads(process.communicate()[0]) for process in running]


def whole_fleet(folder: Path, source: Path, queries: list[str]) -> dict[str, Any]:
    """Return what clients and workers that begin at once do."""
    (folder / "fleet").mkdir()
    os.environ["FANOUT_CACHE_DIR"] = str(folder / "client")
    processes = Processes(str(folder / "fleet"))
    try:
        url = Valkey(processes).url
        words = [str(Path(sys.executable).with_name("fanout")), "worker", "--concurrency", "16"]
        caches = [folder / f"cache{number}" for number in range(_WORKERS)]
        pids = [
            processes.start(
                cache.name, words, {"FANOUT_BROKER_URL": url, "FANOUT_CACHE_DIR": str(cache)}
            )
            for cache in caches
        ]
        started = time.perf_counter()
        said = _submitted(url, source, queries)
        wall_s = time.perf_counter() - started
        with redis.Redis.from_url(url) as server:
            stored = server.info("memory")["used_memory"]
            indexes = len(server.keys("*:passages-*-*:runs"))
        memory = [_worker_mb(pid) for pid in pids]
        fetched = [len(list(cache.glob("passages/*.passages"))) for cache in caches]
    finally:
        processes.close()
    return {
        "clients": _CLIENTS,
        "workers": _WORKERS,
        "wall_s": rounded(wall_s),
        "submitted_s": [rounded(one["submitted_s"]) for one in said],
        "ended_s": [rounded(one["ended_s"]) for one in said],
        "succeeded": [one["succeeded"] for one in said],
        "clients that indexed": sum(" indexed" in " ".join(one["notices"]) for one in said),
        "indexes in the store": indexes,
        "files of workers": fetched,
        "server_mb": rounded(stored / 1e6),
        "worker_mb": memory,
    }


def _submitted(url: str, source: Path, queries: list[str]) -> list[dict[str, Any]]:
    """Return what clients say that submit a run each, all at once."""
    words = [sys.executable, "-c", _SUBMIT, url, str(source)]
    with ThreadPoolExecutor(_CLIENTS) as threads:
        run = partial(subprocess.run, words, input=json.dumps(queries), check=True)
        done = [
            threads.submit(run, stdout=subprocess.PIPE, text=True, timeout=_BOUND_S)
            for _ in range(_CLIENTS)
        ]
        return [json.loads(one.result().stdout.splitlines()[-1]) for one in done]


def _worker_mb(pid: int) -> dict[str, float]:
    found = {"rss": 0.0, "anonymous": 0.0}
    for one in descendants([pid]):
        lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()[1:]
        words = {name.rstrip(":"): int(value) for name, value, *_ in map(str.split, lines)}
        found["rss"] += words["Rss"] / 1e3
        found["anonymous"] += words["Anonymous"] / 1e3
    return {name: rounded(value) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where files are written")
    parser.add_argument("--no-fleet", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "retrieval.json")
    options = parser.parse_args()
    about = machine()
    with tempfile.TemporaryDirectory(prefix="fanout-retrieval-", dir=options.folder) as name:
        folder = Path(name)
        source = folder / "passages.jsonl"
        queries = passages_file(source, options.passages)
        alone = one_machine(folder, source, queries)
        print(alone, file=sys.stderr, flush=True)
        fleet = {} if options.no_fleet else whole_fleet(folder, source, queries)
        print(fleet, file=sys.stderr, flush=True)
    save(options.out, {
        "machine": about, "versions": versions(("fanout-llm", "bm25s", "numpy")),
        "passages": options.passages, "words": _LENGTH, "top_k": _TOP_K,
        "one machine": alone, "fleet": fleet,
    })  # fmt: skip


if __name__ == "__main__":
    main()
