"""What every contender is: a program that gets ready, does its work when told to, and waits.

Its argument is a ``Work`` as JSON. On stdout it says, a line of JSON each, that it is ready and how
it went; on stdin it is told to start and to end. Between the two, ``compare.py`` reads what its
processes have used. All that its libraries print goes to stderr.
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
    """What is to be done, the same for all.

    Attributes:
        base_url: The provider's, with its ``/v1``.
        calls: How many prompts.
        in_flight: How many calls at once, in all workers together.
        workers: How many worker processes, where a contender has such.
        prompt_bytes: How long each prompt is, about.
        folder: A place for files.
        options: What is for one contender alone.
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
        """How many calls each worker has in flight."""
        return -(-self.in_flight // self.workers)

    def documents(self, count: int) -> list[str]:
        """Return texts, no two of which are the same."""
        times = -(-self.prompt_bytes // len(_WORDS))
        filler = (_WORDS * times)[: self.prompt_bytes]
        return [f"document {number}: {filler}" for number in range(count)]

    def prompts(self, count: int) -> list[str]:
        """Return what is sent to the model."""
        return [f"Summarise: {document}" for document in self.documents(count)]


class Contender(Protocol):
    """One way to have many calls made."""

    def run(self, count: int) -> int:
        """Make so many calls; return how many gave an answer."""

    def close(self) -> None:
        """End all that was started."""


def count_ok(answers: list[Any]) -> int:
    """Return how many of the answers are texts."""
    return sum(isinstance(answer, str) and bool(answer) for answer in answers)


def compete(make: Callable[[Work], Contender]) -> None:
    """Be a contender; one whole wave of calls comes before the start."""
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
