"""fanout: a Valkey server, ``fanout worker`` processes, and a client that submits a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from contest import MODEL, compete
from fleet import Fleet

from fanout import RunSpec

if TYPE_CHECKING:
    from contest import Work

    from fanout import Run

__all__ = ["answers", "spec"]

_BOUND_S = 3600.0


def spec() -> RunSpec:
    """Return the spec of the run, without an aggregate."""
    return RunSpec(model=f"openai/{MODEL}", prompt="Summarise: {input}", reduce="none")


def answers(run: Run) -> int:
    """Wait until a run has ended; return how many branches succeeded."""
    return run.wait(_BOUND_S).succeeded


class FanoutFleet:
    """fanout with default settings; each outcome is written to the server before it counts."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._fleet = Fleet(
            work.folder,
            workers=work.workers,
            concurrency=work.per_worker,
            base_url=work.base_url,
            append_only=bool(work.options.get("append_only")),
        )

    def run(self, count: int) -> int:
        """Submit a run, and wait until it has ended."""
        return answers(self._fleet.client.submit(spec(), self._work.documents(count)))

    def close(self) -> None:
        """End server and workers."""
        self._fleet.close()


if __name__ == "__main__":
    compete(FanoutFleet)
