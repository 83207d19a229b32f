"""Compares thread counts of the local model: all cores, or one fewer.

    python benchmarks/local_threads.py [--pairs 5] [--calls 4] [--tokens 16]

Prints, as JSON, the tokens a second of each run of concurrent calls, and for each pair the ratio of
one fewer to all: on the machine as it is, and next to a process that keeps one core busy. The two runs of
a pair follow one another, in alternating order.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from measure import machine, rounded, spread

from fanout.core.errors import LLMError
from fanout.core.records import ErrorKind
from fanout.core.settings import load_settings
from fanout.llm import LLMRequest
from fanout.llm.assets import WEIGHTS, fetch
from fanout.llm.local import LocalLLM
from fanout.system.resources import model_threads, usable_cores

if TYPE_CHECKING:
    from collections.abc import Iterator

_START_S = 60.0
_PROMPT = "Tell a long story about the {number} lighthouses of an island and their keepers."


def serve(threads: int, weights: Path, folder: Path) -> None:
    """Run the server of the local model with another number of threads."""
    from fanout.llm import local_server

    setattr(local_server, "model_threads", lambda _cores: threads)  # noqa: B010 - exported elsewhere
    local_server.main(weights, folder)


@contextmanager
def served(threads: int) -> Iterator[Path]:
    """Yield a cache folder with a running server."""
    weights = fetch(WEIGHTS, load_settings().cache_dir / "models")
    with tempfile.TemporaryDirectory(prefix="fanout-threads-") as name:
        cache = Path(name)
        folder = cache / "run"
        folder.mkdir()
        (cache / "models").mkdir()
        (cache / "models" / weights.name).symlink_to(weights)
        command = [sys.executable, __file__, "--serve", str(threads), str(weights), str(folder)]
        with (folder / "local-server.users").open("ab") as users:
            fcntl.flock(users, fcntl.LOCK_SH)
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            try:
                until = time.monotonic() + _START_S
                while not (folder / "local-server.json").exists():
                    if process.poll() is not None or time.monotonic() > until:
                        raise SystemExit("the local model's server does not start")
                    time.sleep(0.05)
                yield cache
            finally:
                process.kill()
                process.wait()


async def _tokens_per_s(cache: Path, calls: int, tokens: int) -> float:
    llm = LocalLLM(cache)
    await llm.check()
    requests = [
        LLMRequest(prompt=_PROMPT.format(number=number), temperature=0.0, max_tokens=tokens)
        for number in range(calls)
    ]
    await _tokens(llm, requests[0])
    began_at = time.monotonic()
    made = await asyncio.gather(*(_tokens(llm, request) for request in requests))
    took_s = time.monotonic() - began_at
    await llm.aclose()
    return sum(made) / took_s


async def _tokens(llm: LocalLLM, request: LLMRequest) -> int:
    try:
        usage = (await llm.complete(request)).usage
    except LLMError as error:
        if error.kind is not ErrorKind.TRUNCATED or error.usage is None:
            raise
        usage = error.usage
    return usage.output_tokens or 0


@contextmanager
def _beside(busy: int) -> Iterator[None]:
    """Keep some cores busy."""
    code = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(code) for _ in range(busy)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _pairs(busy: int, choices: list[int], given: argparse.Namespace) -> dict[str, object]:
    measured: dict[int, list[float]] = {threads: [] for threads in choices}
    for pair in range(given.pairs):
        for threads in choices if pair % 2 else reversed(choices):
            with served(threads) as cache, _beside(busy):
                speed = asyncio.run(_tokens_per_s(cache, given.calls, given.tokens))
            measured[threads].append(speed)
    fewer, every = (measured[threads] for threads in choices)
    ratios = [one / all_ for one, all_ in zip(fewer, every, strict=True)]
    return {
        "tokens_per_s": {
            f"{threads} threads": [rounded(speed) for speed in speeds]
            for threads, speeds in measured.items()
        },
        "ratios": [rounded(ratio) for ratio in ratios],
        "ratio": spread(ratios),
        "median_tokens_per_s": {
            f"{threads} threads": rounded(statistics.median(speeds))
            for threads, speeds in measured.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--calls", type=int, default=4, help="made at once")
    parser.add_argument("--tokens", type=int, default=16, help="of an answer")
    given = parser.parse_args()
    cores = usable_cores()
    if cores == 1:
        raise SystemExit("on one core there is nothing to choose")
    choices = [model_threads(cores), cores]
    result = {
        "machine": machine(),
        "pairs": given.pairs,
        "calls": given.calls,
        "tokens": given.tokens,
        "as it is": _pairs(0, choices, given),
        "beside one busy process": _pairs(1, choices, given),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
    else:
        main()
