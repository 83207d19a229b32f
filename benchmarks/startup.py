"""Measures start times: the help of a command, a run of three branches, and a worker.

    python benchmarks/startup.py [--rounds 9] [--against FOLDER] [--out FILE]

Each round measures all of them once, one after the other, and also an idle interpreter and one that
imports Celery, so that other load on the machine affects all. ``--against`` measures another source
tree of fanout in the same rounds, such as the version before a change. The seconds count from the
start of a process to its end, or to the ready line of a worker. The CPU seconds include the children
of a process. Prints the result as JSON, and writes it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from faults.nodes import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_OUT = Path(__file__).with_name("results") / "startup.json"
_FANOUT = Path(sys.executable).with_name("fanout")
_BOUND_S = 60.0
# The most seconds that the median may take.
_WANTED_S = {"help": 0.15, "run": 1.5, "library": 1.5, "worker": 2.0}

_LIBRARY = """
from fanout import ParallelCalls

with ParallelCalls(llm="fake") as runner:
    result = runner.run(["one", "two", "three"], "Say: {input}")
assert all(result.outputs), result.errors
"""
_INTERPRETERS = {
    "python": "pass",
    "import celery": "import celery",
    "use celery": "from celery import Celery",
    "import fanout": "import fanout",
}

Timing = tuple[float, float]


def _environment(tree: Path | None) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("FANOUT_")}
    if tree is not None:
        env["PYTHONPATH"] = str(tree.resolve())
    return env


def _used_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _timed(command: list[str], env: dict[str, str], folder: Path) -> Timing:
    """Run a command to its end; return its seconds and CPU seconds."""
    cpu_s, began_at = _used_s(), time.monotonic()
    # Not in this folder, as Python would import from it.
    subprocess.run(
        command, cwd=folder, env=env, stdout=subprocess.DEVNULL, check=True, timeout=_BOUND_S
    )
    return time.monotonic() - began_at, _used_s() - cpu_s


def _worker(url: str, env: dict[str, str]) -> Timing:
    """Start a worker; return the seconds and CPU seconds until it is ready."""
    began_at = time.monotonic()
    process = subprocess.Popen(
        [_FANOUT, "worker", "--broker-url", url],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        lines = process.stdout or ()
        if not any(line.rstrip().endswith(" ready.") for line in lines):
            raise RuntimeError("a worker has ended before it was ready")
        seconds = time.monotonic() - began_at
        used = psutil.Process(process.pid).cpu_times()
        return seconds, used.user + used.system
    finally:
        process.kill()
        process.communicate()


def _measures(tree: Path | None, folder: Path, url: str) -> dict[str, Callable[[], Timing]]:
    """Return the measured commands for a source tree; None for the installed package."""
    env = _environment(tree)
    inputs = [str(path) for path in sorted(folder.glob("*.txt"))]
    run = ["run", *inputs, "--model", "fake", "--prompt", "Say: {input}", "--quiet"]
    commands = {
        "help": [str(_FANOUT), "--help"],
        "run": [str(_FANOUT), *run],
        "library": [sys.executable, "-c", _LIBRARY],
        **{name: [sys.executable, "-c", code] for name, code in _INTERPRETERS.items()},
    }
    timed = {
        name: lambda command=command: _timed(command, env, folder)
        for name, command in commands.items()
    }
    return {**timed, "worker": lambda: _worker(url, env)}


def _summary(timings: Iterable[Timing]) -> dict[str, float]:
    walls, cpus = zip(*timings, strict=True)
    return {
        "median_s": round(statistics.median(walls), 3),
        "min_s": round(min(walls), 3),
        "max_s": round(max(walls), 3),
        "cpu_median_s": round(statistics.median(cpus), 3),
    }


def _measured(rounds: int, trees: dict[str, Path | None]) -> dict[str, dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="fanout-startup-") as name:
        folder = Path(name)
        for word in ("one", "two", "three"):
            (folder / f"{word}.txt").write_text(f"{word}\n")
        server = Server(folder / "server")
        try:
            measures = {
                (tree, what): measure
                for tree, path in trees.items()
                for what, measure in _measures(path, folder, server.url).items()
            }
            found: dict[tuple[str, str], list[Timing]] = {key: [] for key in measures}
            # The first round fills the disk cache and compiles the bytecode.
            for number in range(rounds + 1):
                for key, measure in measures.items():
                    timing = measure()
                    if number:
                        found[key].append(timing)
        finally:
            server.close()
    return {
        tree: {what: _summary(found[name, what]) for name, what in found if name == tree}
        for tree in trees
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--against", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, metavar="FILE", default=_OUT)
    options = parser.parse_args()
    trees = {"installed": None, **({"against": options.against} if options.against else {})}
    load = os.getloadavg()[0]
    result = {
        "rounds": options.rounds,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load_before": round(load, 2),
        "load_after": 0.0,
        **_measured(options.rounds, trees),
    }
    result["load_after"] = round(os.getloadavg()[0], 2)
    result["is_as_wanted"] = {
        what: result["installed"][what]["median_s"] < most_s for what, most_s in _WANTED_S.items()
    }
    text = json.dumps(result, indent=2)
    print(text)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(f"{text}\n")


if __name__ == "__main__":
    main()
