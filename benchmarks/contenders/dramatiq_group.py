"""Dramatiq: a group of messages on Redis with its result backend, threads, the OpenAI SDK."""

from __future__ import annotations

import os
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

import dramatiq
import redis
from contest import MODEL, compete, count_ok
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend
from openai import OpenAI
from services import Processes, Valkey

if TYPE_CHECKING:
    from contest import Work

_URL = "BENCH_REDIS_URL"
_BOUND_MS = 3_600_000


def _use(url: str) -> None:
    broker = RedisBroker(url=url)
    # Waiting for a result blocks at the server: by default the client times out after a few seconds.
    client = redis.Redis.from_url(url, socket_timeout=None)
    broker.add_middleware(Results(backend=RedisBackend(client=client)))
    dramatiq.set_broker(broker)


@cache
def _client() -> OpenAI:
    return OpenAI(max_retries=0)


def _call(prompt: str) -> str | None:
    messages: Any = [{"role": "user", "content": prompt}]
    reply = _client().chat.completions.create(model=MODEL, messages=messages)
    return reply.choices[0].message.content


def _actor() -> Any:
    return dramatiq.actor(actor_name="call", store_results=True, max_retries=0)(_call)


# The worker imports this module, and reads the server's URL from its environment.
if _URL in os.environ:
    _use(os.environ[_URL])
    call = _actor()


class DramatiqGroup:
    """A client, a server, and worker processes."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._processes = Processes(work.folder)
        url = Valkey(self._processes).url
        _use(url)
        self._actor = _actor()
        env = {
            _URL: url,
            "OPENAI_BASE_URL": work.base_url,
            "OPENAI_API_KEY": "none",
        }
        command = [sys.executable, "-m", "dramatiq", "dramatiq_group"]
        command += ["--processes", str(work.workers), "--threads", str(work.per_worker)]
        self._processes.start("workers", command, env)

    def run(self, count: int) -> int:
        """Run one group, and read its results as they come."""
        messages = [self._actor.message(prompt) for prompt in self._work.prompts(count)]
        group = dramatiq.group(messages).run()
        return count_ok(list(group.get_results(block=True, timeout=_BOUND_MS)))

    def close(self) -> None:
        """End server and workers."""
        self._processes.close()


if __name__ == "__main__":
    compete(DramatiqGroup)
