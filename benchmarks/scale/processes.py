"""The processes of a run at scale: a server, workers, Flower, and a separate client."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from faults.nodes import Server
from hosts import Process
from ports import free_port

from fanout import Client

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

__all__ = ["ScaleFleet"]

_BENCHMARKS = Path(__file__).resolve().parents[1]
_FANOUT = str(Path(sys.executable).with_name("fanout"))
_START_S = 60.0


class ScaleFleet:
    """A server, workers, and optionally Flower. The caller must close it."""

    def __init__(
        self, folder: Path, *, workers: int, concurrency: int, storage: str | None, flower: bool
    ) -> None:
        self._folder = folder
        self.env = {"FANOUT_STORAGE": storage} if storage else {}
        self.server = Server(folder / "server")
        self.processes: dict[str, Process] = {"server": self.server.process}
        try:
            for number in range(1, workers + 1):
                options = ["worker", "--name", f"w{number}", "--concurrency", str(concurrency)]
                # The workers' log lines about each shard are not part of the measurement.
                self._start(f"worker {number}", [*options, "--loglevel", "WARNING"])
            if flower:
                login = {"FANOUT_FLOWER_PASSWORD": "of-this-benchmark-alone"}
                self._start("flower", ["flower", "--port", str(free_port())], env=login)
            self._wait_until_up(workers)
        except BaseException:
            self.close()
            raise

    def _start(
        self, name: str, arguments: list[str], *, env: Mapping[str, str] | None = None
    ) -> None:
        self.processes[name] = self.program(name, [_FANOUT, *arguments], env=env)

    def program(
        self, name: str, command: list[str], *, env: Mapping[str, str] | None = None
    ) -> Process:
        """Start a program with the URL of this fleet's server; its output goes to a log."""
        log = self._folder / f"{name.replace(' ', '')}.log"
        known = {"FANOUT_BROKER_URL": self.server.url, "PYTHONPATH": str(_BENCHMARKS)}
        return Process(command, log=log, env={**known, **self.env, **(env or {})})

    def _wait_until_up(self, workers: int) -> None:
        until = time.monotonic() + _START_S
        with Client(self.server.url) as client:
            while len(client.workers()) < workers:
                for name, process in self.processes.items():
                    if process.status is not None or time.monotonic() > until:
                        raise RuntimeError(f"{name} did not start: see {process.log}")
                time.sleep(0.05)

    def client(self, number: int, plan: Path) -> Process:
        """Start a process that submits the run of a plan, and waits until it has ended."""
        return self.program(
            f"client {number}", [sys.executable, "-m", "scale.submitter", str(plan)]
        )

    def export(self, run_id: str, out: Path) -> Process:
        """Start `fanout results RUN --out DIR`."""
        command = [_FANOUT, "results", run_id, "--out", str(out), "--quiet", "--json"]
        return self.program("export", command)

    def close(self) -> None:
        """Stop all processes."""
        for name, process in self.processes.items():
            if name != "server":
                process.kill()
        self.server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
