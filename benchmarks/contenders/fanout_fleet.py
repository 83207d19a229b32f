"""fanout: a Valkey server, ``fanout worker`` processes, and a client that submits a run."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from contest import MODEL, compete
from services import Processes, Valkey

from fanout import Client, RunSpec

if TYPE_CHECKING:
    from contest import Work

    from fanout import Run

__all__ = ["answers", "spec"]

_START_S = 60.0
_BOUND_S = 3600.0


def spec() -> RunSpec:
    """Return what the run is to do: no aggregate."""
    return RunSpec(model=f"openai/{MODEL}", prompt="Summarise: {input}", reduce="none")


def answers(run: Run) -> int:
    """Wait until a run has ended; return how many branches succeeded."""
    return run.wait(_BOUND_S).succeeded


class FanoutFleet:
    """Settings are the defaults; every outcome is written to the server before it counts."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._processes = Processes(work.folder)
        server = Valkey(self._processes, append_only=bool(work.options.get("append_only")))
        env = {
            "FANOUT_BROKER_URL": server.url,
            "OPENAI_BASE_URL": work.base_url,
            "OPENAI_API_KEY": "none",
        }
        command = [str(Path(sys.executable).with_name("fanout")), "worker"]
        command += ["--concurrency", str(work.per_worker)]
        for number in range(work.workers):
            name = f"worker{number}"
            self._processes.start(name, [*command, "--name", f"{name}@bench"], env)
        self._client = Client(server.url)
        self._wait_until_up()

    def _wait_until_up(self) -> None:
        until = time.monotonic() + _START_S
        while len(list(self._client.workers())) < self._work.workers:
            self._processes.check()
            if time.monotonic() > until:
                raise RuntimeError("the workers do not start")
            time.sleep(0.05)

    def run(self, count: int) -> int:
        """Submit a run, and wait until it has ended."""
        return answers(self._client.submit(spec(), self._work.documents(count)))

    def close(self) -> None:
        """End server and workers."""
        self._client.close()
        self._processes.close()


if __name__ == "__main__":
    compete(FanoutFleet)
