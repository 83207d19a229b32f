"""Runs one contender once, and measures its duration and its processes."""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import psutil
from measure import MemoryPeak, cpu_s, descendants, ideal_s, rounded
from provider import latencies

if TYPE_CHECKING:
    from collections.abc import Mapping

    from provider import Provider

__all__ = ["Contender", "FailedTrialError", "TrialPlan", "trial"]

_CONTENDERS = Path(__file__).with_name("contenders")
_PATHS = (_CONTENDERS, _CONTENDERS.parent)
_LOG_TAIL = 600
_READY_S = 180.0


class FailedTrialError(Exception):
    """A contender did not get ready, or did not end."""


@dataclass(frozen=True)
class Contender:
    """A program that can do the work.

    Attributes:
        name: Its name in results.
        program: Its file in ``contenders/``.
        python: The interpreter with its dependencies.
        packages: The packages whose versions matter.
        options: Options for it alone.
    """

    name: str
    program: str
    python: str
    packages: tuple[str, ...]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class TrialPlan:
    """The work: the same for all.

    Attributes:
        latency: The provider's latency, in a form of ``provider.latencies``.
        calls: The number of prompts.
        in_flight: The calls in flight, in all workers together.
        workers: The worker processes, for contenders that have them.
        seed: The seed of the latencies.
        prompt_bytes: The length of each document.
        bound_s: The most seconds to wait.
    """

    latency: str
    calls: int
    in_flight: int
    workers: int
    seed: int
    prompt_bytes: int
    bound_s: float

    @property
    def ideal_s(self) -> float:
        """The least seconds, from the latencies alone."""
        return ideal_s(latencies(self.latency, self.seed), self.calls, self.in_flight)


class _Program:
    """A contender's process, and the lines that it prints."""

    def __init__(self, contender: Contender, plan: TrialPlan, base_url: str, folder: Path) -> None:
        shared = {"calls", "in_flight", "workers", "prompt_bytes"}
        work = {name: value for name, value in asdict(plan).items() if name in shared}
        work |= {"base_url": base_url, "folder": str(folder), "options": dict(contender.options)}
        self._log = folder / "contender.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [contender.python, str(_CONTENDERS / contender.program), json.dumps(work)],
                # The caller's own settings must not change the measurement.
                env=_without_settings(os.environ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._stdout: IO[bytes] = self._process.stdout  # type: ignore[assignment]
        self._stdin: IO[bytes] = self._process.stdin  # type: ignore[assignment]

    def heard(self, bound_s: float) -> dict[str, Any]:
        line = self._stdout.readline() if select.select([self._stdout], [], [], bound_s)[0] else b""
        if not line:
            tail = self._log.read_text(errors="replace")[-_LOG_TAIL:].strip()
            raise FailedTrialError(f"it {self._how(bound_s)}: {tail}")
        return dict(json.loads(line))

    def _how(self, bound_s: float) -> str:
        try:
            return f"ended with status {self._process.wait(1)}"
        except subprocess.TimeoutExpired:
            return f"was silent for {bound_s:.0f} s"

    def tell(self, word: str) -> None:
        self._stdin.write(f"{word}\n".encode())
        self._stdin.flush()

    def end(self, *, but: int) -> None:
        """End it and all its descendants, with those that this process has adopted."""
        with suppress(OSError):
            self._stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(30)
        for pid in descendants([os.getpid()], but=[os.getpid(), but]):
            with suppress(psutil.Error):
                psutil.Process(pid).kill()
        self._process.wait()
        self._stdout.close()
        _reap(but)


def _without_settings(environ: Mapping[str, str]) -> dict[str, str]:
    kept = {k: v for k, v in environ.items() if not k.startswith(("FANOUT_", "OPENAI_"))}
    # Workers of contenders import the contender's own module.
    return {**kept, "PYTHONPATH": os.pathsep.join(str(path) for path in _PATHS)}


def _reap(but: int) -> None:
    until = time.monotonic() + 5
    while descendants([os.getpid()], but=[os.getpid(), but]) and time.monotonic() < until:
        for pid in descendants([os.getpid()], but=[os.getpid(), but]):
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.02)


def trial(contender: Contender, plan: TrialPlan, provider: Provider) -> dict[str, Any]:
    """Run the work once with a contender.

    CPU is that of all its processes: client, workers and server; the provider's is separate.

    Raises:
        FailedTrialError: It did not get ready, or did not end.
    """
    with tempfile.TemporaryDirectory(prefix="fanout-compare-") as folder:
        program = _Program(contender, plan, provider.base_url, Path(folder))
        try:
            program.heard(_READY_S)
            return _measured(program, plan, provider)
        finally:
            program.end(but=provider.pid)


def _measured(program: _Program, plan: TrialPlan, provider: Provider) -> dict[str, Any]:
    provider.reset()
    with MemoryPeak(program.pid) as memory:
        tree = descendants([program.pid])
        before_s, provider_before_s = cpu_s(tree), cpu_s([provider.pid])
        program.tell("go")
        told = program.heard(plan.bound_s)
        used_s = cpu_s(descendants([program.pid])) - before_s
        provider_s = cpu_s([provider.pid]) - provider_before_s
    stats = provider.stats()
    wall_s, ideal = float(told["wall_s"]), plan.ideal_s
    return {
        "wall_s": rounded(wall_s),
        "calls_per_s": rounded(plan.calls / wall_s),
        "share_of_ideal": rounded(ideal / wall_s) if ideal else None,
        "cpu_ms_per_call": rounded(used_s / plan.calls * 1e3),
        "provider_cpu_ms_per_call": rounded(provider_s / plan.calls * 1e3),
        "peak_pss_mb": rounded(memory.pss_mb),
        "peak_rss_mb": rounded(memory.rss_mb),
        "ok": told["ok"],
        "served": stats["served"],
        "by_status": stats["by_status"],
        "max_in_flight": stats["max_in_flight"],
        "processes": len(tree),
    }
