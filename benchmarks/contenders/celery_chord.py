"""Celery with its defaults: a chord of tasks on Redis, the threads pool, the OpenAI SDK's client."""

from __future__ import annotations

import os
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

from celery import Celery, chord
from contest import MODEL, compete, count_ok
from openai import OpenAI
from services import Processes, Valkey

if TYPE_CHECKING:
    from contest import Work

_URL = "BENCH_REDIS_URL"
_START_S = 60.0
_BOUND_S = 3600.0

# The worker imports this module, and reads the server's URL from its environment.
app = Celery("celery_chord", broker=os.environ.get(_URL), backend=os.environ.get(_URL))


@cache
def _client() -> OpenAI:
    return OpenAI(max_retries=0)


@app.task(name="call")
def call(prompt: str) -> str | None:
    """Make one call."""
    messages: Any = [{"role": "user", "content": prompt}]
    reply = _client().chat.completions.create(model=MODEL, messages=messages)
    return reply.choices[0].message.content


@app.task(name="gathered")
def gathered(answers: list[str | None]) -> int:
    """The chord's callback."""
    return count_ok(answers)


class CeleryChord:
    """A client, a server, and workers."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._processes = Processes(work.folder)
        url = Valkey(self._processes).url
        app.conf.update(broker_url=url, result_backend=url)
        env = {
            _URL: url,
            "OPENAI_BASE_URL": work.base_url,
            "OPENAI_API_KEY": "none",
        }
        command = [sys.executable, "-m", "celery", "-A", "celery_chord", "worker"]
        command += ["--pool", "threads", "--concurrency", str(work.per_worker)]
        for number in range(work.workers):
            name = f"worker{number}"
            self._processes.start(name, [*command, "--hostname", f"{name}@bench"], env)
        self._wait_until_up()

    def _wait_until_up(self) -> None:
        for _ in range(int(_START_S)):
            self._processes.check()
            if len(app.control.ping(timeout=1.0)) == self._work.workers:
                return
        raise RuntimeError("the workers do not answer")

    def run(self, count: int) -> int:
        """Run one chord; return the result of its callback."""
        result = chord(call.s(prompt) for prompt in self._work.prompts(count))(gathered.s())
        # Wait only for the callback: the result of a chord would wait for each member of its header.
        return int(app.AsyncResult(result.id).get(timeout=_BOUND_S))

    def close(self) -> None:
        """End server and workers."""
        self._processes.close()


if __name__ == "__main__":
    compete(CeleryChord)
