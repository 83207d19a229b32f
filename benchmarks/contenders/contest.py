"""The protocol of contenders: programs that get ready, work on request, and wait.

The argument of a contender is a ``Work`` as JSON. On stdout it reports that it is ready, and then the
outcome, one line of JSON each; on stdin it gets the commands to start and to end. Between them,
``compare.py`` measures its processes. Output of its libraries goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MODEL", "Contender", "Work", "compete", "count_ok"]

MODEL = "mock"
_WORDS = "some text that has to be read "


@dataclass(frozen=True)
class Work:
    """The work, the same for all contenders.

    Attributes:
        base_url: The URL of the provider, with its ``/v1``.
        calls: The number of prompts.
        in_flight: The calls in flight, in all workers together.
        workers: The worker processes, for contenders that have them.
        prompt_bytes: The approximate length of each prompt.
        folder: A folder for files.
        options: Options of this contender alone.
    """

    base_url: str
    calls: int
    in_flight: int
    workers: int
    prompt_bytes: int
    folder: str
    options: dict[str, Any]

    @property
    def per_worker(self) -> int:
        """The calls in flight of each worker."""
        return -(-self.in_flight // self.workers)

    def documents(self, count: int) -> list[str]:
        """Return distinct texts."""
        times = -(-self.prompt_bytes // len(_WORDS))
        filler = (_WORDS * times)[: self.prompt_bytes]
        return [f"document {number}: {filler}" for number in range(count)]

    def prompts(self, count: int) -> list[str]:
        """Return the messages for the model."""
        return [f"Summarise: {document}" for document in self.documents(count)]


class Contender(Protocol):
    """One way to make many calls."""

    def run(self, count: int) -> int:
        """Make a number of calls; return how many succeeded."""

    def close(self) -> None:
        """Stop all processes that were started."""


def count_ok(answers: list[Any]) -> int:
    """Count the answers that are texts."""
    return sum(isinstance(answer, str) and bool(answer) for answer in answers)


def compete(make: Callable[[Work], Contender]) -> None:
    """Run a contender; it makes one full wave of calls before the start."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    work = Work(**json.loads(sys.argv[1]))
    contender = make(work)
    try:
        warm = min(work.in_flight, work.calls)
        answered = contender.run(warm)
        if answered != warm:
            raise RuntimeError(f"only {answered} of {warm} calls were answered in the warm-up")
        channel.write(json.dumps({"ready": True}) + "\n")
        if sys.stdin.readline().strip() != "go":
            return
        started = time.perf_counter()
        ok = contender.run(work.calls)
        wall_s = time.perf_counter() - started
        channel.write(json.dumps({"wall_s": wall_s, "ok": ok}) + "\n")
        sys.stdin.readline()
    finally:
        contender.close()
